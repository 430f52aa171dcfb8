"""Carrying out, between two steps, what a running run was asked to do (`commands.py`).

    the step's sum says that something waits → the lead takes the command and tells all ranks → each calls the handler of its kind
    → the lead answers, and the history and the user are told

A handler is called on all ranks with the same command, and either returns on all what came of it, or raises a `UserError` on all, having changed
nothing: then the command is refused. It returns None where the answer will be given later (`commands.answer`), by whoever completes it. One command
is carried out after a step. Where steps are checked late the next step is settled first, so that the state is that of one step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from penstock.config import UserError, nearest
from penstock.engine.commands import Answer, Command, answer

if TYPE_CHECKING:
    from penstock.engine.build import Parts

Handler = Callable[["Parts", Command], Answer | None]

#: What carries out each kind of command.
HANDLERS: dict[str, Handler] = {}


def obey(parts: Parts, asked: bool) -> None:
    """Carry out the next command, if the step has told of one (`asked`); all ranks must call it after every step."""
    inbox = parts.inbox
    inbox.agreed = inbox.agreed or asked
    if not inbox.agreed or parts.torn:
        return
    inbox.agreed = False
    taken = inbox.take()
    command = json.loads(parts.world.share(json.dumps(asdict(taken) if taken else None)))
    if command is not None:
        parts.heart.says("command")
        _carry_out(parts, Command(**command))


def _carry_out(parts: Parts, command: Command) -> None:
    began, step = time.perf_counter(), parts.progress.step
    try:
        came = _handler(command.kind)(parts, command)
    except UserError as error:
        came = Answer("refused", str(error))
    if came is None:
        return
    came = replace(came, step=step, seconds=round(time.perf_counter() - began, 3))
    text = came.text if came.state == "done" else f"refused to {command.kind}: {came.text}"
    parts.journal.event(step, command.kind, text)
    parts.journal.say(f"step {step}: {text}")
    told = {"command": command.kind, "who": command.who, "seconds": came.seconds}
    parts.saving.tell_history("change" if came.state == "done" else "note", text, step, **told, **came.data)
    if parts.world.is_lead:
        answer(parts.run.path, command.name, came)


def _handler(kind: str) -> Handler:
    if kind not in HANDLERS:
        raise UserError(f"a run knows no command {kind!r}{nearest(kind, HANDLERS)}; this one may have been started by an older version of Penstock")
    return HANDLERS[kind]
