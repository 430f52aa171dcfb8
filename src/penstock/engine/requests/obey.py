"""Carrying out, between two steps, what a running run was asked to do (`commands.py`).

    the step's sum says that something waits → the lead takes the command and tells all ranks → each calls the handler of its kind
    → the lead answers, and the history and the user are told

A handler is called on all ranks with the same command, and either returns on all what came of it, or raises a `UserError` on all, having changed
nothing: then the command is refused. It returns None where the answer will be given later (`commands.answer`), by whoever completes it. One command
is carried out after a step; one with `dry_run` only asks, and is not told to the history. Where steps are checked late the next step is settled
first, so that the state is that of one step. Before commands come the changes that this run took up after this very step before (`agenda.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING

from penstock.config import UserError, flat, nearest
from penstock.engine.guard.roll_back import roll_back
from penstock.engine.requests.acting import snapshot_now, stop_soon
from penstock.engine.requests.agenda import agreed_due, due_from
from penstock.engine.requests.change import agreed_plan, apply, change_run
from penstock.engine.requests.commands import Answer, Command, answer
from penstock.store import Event, read_history

if TYPE_CHECKING:
    from penstock.engine.build import Parts

Handler = Callable[["Parts", Command], Answer | None]

#: What carries out each kind of command.
HANDLERS: dict[str, Handler] = {"change": change_run, "snapshot": snapshot_now, "stop": stop_soon, "roll_back": roll_back}


def obey(parts: Parts, asked: bool) -> None:
    """Carry out the next command, if the step has told of one (`asked`); all ranks must call it after every step."""
    _take_up_due(parts)
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
    if not command.arguments.get("dry_run"):
        parts.journal.event(step, command.kind, text)
        parts.journal.say(f"step {step}: {text} ({came.seconds:.2f} s)")
        if not came.told:
            told = {"command": command.kind, "who": command.who, "seconds": came.seconds}
            parts.saving.tell_history("change" if came.state == "done" else "note", text, step, **told, **came.data)
    if parts.world.is_lead:
        answer(parts.run.path, command.name, came)


def begin(parts: Parts) -> None:
    """Before the first step: find what is due later, and take up what is due now; all ranks must call it."""
    _answer_interrupted(parts)
    own = due_from(parts.run, parts.progress.step, flat(parts.config)) if parts.world.is_lead else []
    parts.agenda = agreed_due(parts.world, own)
    _take_up_due(parts)


def _answer_interrupted(parts: Parts) -> None:
    """Tell who asked for what was cut off when ranks were lost what became of it. (Who scales answers by itself, when ranks go on.)"""
    for command in [command for command in parts.inbox.interrupted() if command.kind != "scale"]:
        done = _change_by(parts, command) if command.kind == "change" else None
        if done is not None:
            text = f"{done.text}; ranks were lost meanwhile, and the run takes it up after step {done.step}"
            told = {name: value for name, value in done.data.items() if name not in ("command", "who")}
            came = Answer("done", text, done.step or 0, data=told, told=True)
        elif command.kind == "change":
            came = Answer("refused", f"ranks were lost while it was done, so it was not; ask again once {parts.run.path} goes on")
        else:
            came = Answer("refused", f"ranks were lost while it was done; ask again, if `penstock runs log {parts.run.path}` does not tell of it")
        answer(parts.run.path, command.name, came)


def _change_by(parts: Parts, command: Command) -> Event | None:
    """The event by which a command changed the run's settings, if it did."""
    asked, names = int(command.name[:20]) // 10**9, set(command.arguments.get("values", ()))
    for event in read_history(parts.run.path).events:
        by_it = event.kind == "change" and event.data.get("who") == command.who and names & set(event.data.get("settings", ()))
        if by_it and datetime.fromisoformat(event.time).timestamp() >= asked:
            return event
    return None


def _take_up_due(parts: Parts) -> None:
    """Take up the changes that are due after this step."""
    while parts.agenda and parts.agenda[0].step <= parts.progress.step and not parts.torn:
        due, step = parts.agenda.pop(0), parts.progress.step
        try:
            plan = agreed_plan(parts, due.values)
            apply(parts, plan, "the run itself, as before")
            parts.journal.say(f"step {step}: {plan.sentence()}, as before")
        except UserError as error:
            parts.journal.warn(f"what was changed after step {due.step} is not taken up again: {error}")
            parts.saving.tell_history("alert", f"a change is not taken up again: {error}", step)


def _handler(kind: str) -> Handler:
    if kind not in HANDLERS:
        raise UserError(f"a run knows no command {kind!r}{nearest(kind, HANDLERS)}; this one may have been started by an older version of Penstock")
    return HANDLERS[kind]
