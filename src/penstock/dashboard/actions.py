"""What the page may have done with a run, each as a command that a person could type: page and terminal do the same thing, and refuse the same.

    snapshot                                penstock snapshot RUN
    stop                                    penstock stop RUN
    scale        ranks                      penstock scale RUN --ranks N
    change       settings, accept_loss      penstock change RUN --set NAME=VALUE … [--yes]
    fork         step or snapshot, name,    penstock runs fork RUN@… --set NAME=VALUE … --run-dir …
                 settings
    acknowledge  alert                      penstock alerts RUN --ack ID
    silence      alert_kind, hours          penstock alerts RUN --silence KIND --hours N

A command is a list of arguments, not text for a shell; names are checked, so none can pass for an option. Settings by which a run would start
programs, write elsewhere or talk to other machines are not to be had from the page, whoever has the token. It is given so many seconds, and its
output is cut to its end. What was done is told in the run's history. Cost: starting a Python, 3 to 6 s. When not to use it: for what many runs are
to do.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from penstock.config import UserError
from penstock.dashboard.children import environment_of_children
from penstock.dashboard.described import Action
from penstock.dashboard.plain import Refusal
from penstock.store.runs import Run
from penstock.store.story.history import append_event

#: Seconds that a run has to answer, and a command to end.
WAIT_S, END_S, FORK_S = 60.0, 120.0, 400.0
#: Commands at a time, and letters of output that are kept.
AT_ONCE, MOST_TEXT = 4, 16_000
#: Settings and letters of a value, at most.
MOST_SETTINGS, MOST_VALUE = 50, 1000
#: Settings that name programs, other machines, or places to write to or read from.
NOT_HERE = ("alerts.", "run.dir", "run.name", "data.path", "data.cache_dir")
_SETTING, _NAME = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*"), re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WORD, _ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}"), re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class Done:
    """A command, its exit code (None: it was only asked for), and the end of what it printed."""

    command: str
    exit: int | None
    text: str

    def as_dict(self) -> dict[str, object]:
        """As JSON."""
        return {"command": self.command, "exit": self.exit, "text": self.text}


class Actions:
    """Carries out actions, a few at a time."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(AT_ONCE)

    def act(self, run: Run, action: Action, who: str) -> Done:
        """Do what is asked with a run; raises `Refusal` for what cannot be asked so."""
        arguments = arguments_of(run, action)
        command = shlex.join(["penstock", *arguments])
        if action.dry:
            return Done(command, None, "this is what would be done")
        if not action.confirm:
            raise Refusal(409, f"this is done only with confirm: true; it would be `{command}`")
        with self._turn():
            code, text = _run(arguments, FORK_S if action.kind == "fork" else END_S)
        return Done(command, code, text + _told(run, action, command, code, who))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._free.acquire(blocking=False):
            raise Refusal(429, f"{AT_ONCE} actions are being done already; wait for one to end")
        try:
            yield
        finally:
            self._free.release()


def arguments_of(run: Run, action: Action) -> list[str]:
    """The arguments of the command that does it; raises `Refusal` where something is missing or no name."""
    path = str(run.path)
    if action.kind in ("snapshot", "stop"):
        return [action.kind, path, "--wait", f"{WAIT_S:g}"]
    if action.kind == "scale":
        if action.ranks is None or not 1 <= action.ranks <= 1 << 20:
            raise Refusal(422, "scale needs ranks, 1 or more")
        return ["scale", path, "--ranks", str(action.ranks), "--wait", f"{WAIT_S:g}"]
    if action.kind == "change":
        if not action.settings:
            raise Refusal(422, 'change needs settings, such as {"optim.lr": 0.0003}')
        return ["change", path, *_sets(action), *(["--yes"] if action.accept_loss else []), "--wait", f"{WAIT_S:g}"]
    if action.kind == "acknowledge":
        return ["alerts", path, "--ack", _matching(_WORD, action.alert, "acknowledge needs the id of an alert")]
    if action.kind == "silence":
        if not 0.0 <= action.hours <= 1e6:
            raise Refusal(422, "hours must be from 0 (for good) to a million")
        kind = _matching(_WORD, action.alert_kind, "silence needs a kind of alert in alert_kind")
        return ["alerts", path, "--silence", kind, "--hours", f"{action.hours:g}"]
    return _fork(run, action)


def _fork(run: Run, action: Action) -> list[str]:
    if (action.step is None) == (action.snapshot is None):
        raise Refusal(422, "fork needs either the step or the id of a snapshot")
    if action.step is not None and action.step < 0:
        raise Refusal(422, "a step is 0 or more")
    which = str(action.step) if action.step is not None else _matching(_ID, action.snapshot, "that is not the id of a snapshot")
    name = _matching(_NAME, action.name, "a run's name has letters, digits, dots, dashes and no others") if action.name else _free_name(run, which)
    if (run.path.parent / name).exists():
        raise Refusal(409, f"there is a {name} already; choose another name")
    return ["runs", "fork", f"{run.path}@{which}", *_sets(action), "--run-dir", str(run.path.parent / name)]


def _free_name(run: Run, which: str) -> str:
    """A name for a fork that no folder beside the run has."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", run.name).strip("-.") or "run"
    names = [f"{stem[:80]}-fork-{which[:12]}{end}" for end in ("", *(f"-{n}" for n in range(2, 1000)))]
    return next(name for name in names if not (run.path.parent / name).exists())


def _sets(action: Action) -> list[str]:
    """The settings as options."""
    if len(action.settings) > MOST_SETTINGS:
        raise Refusal(422, f"change {MOST_SETTINGS} settings at most at once")
    found = []
    for name, value in action.settings.items():
        _matching(_SETTING, name, f"{name[:60]!r} is not the name of a setting, such as optim.lr")
        if name.startswith(NOT_HERE):
            raise Refusal(403, f"{name} names a program, a machine or a place, which is set on the terminal alone (--set {name}=…)")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if len(text) > MOST_VALUE or not text.isprintable():
            raise Refusal(422, f"the value of {name} is too long, or no plain text")
        found += ["--set", f"{name}={text}"]
    return found


def _matching(form: re.Pattern[str], given: str | None, why: str) -> str:
    if given is None or not form.fullmatch(given):
        raise Refusal(422, why)
    return given


def _run(arguments: list[str], seconds: float) -> tuple[int, str]:
    """Run a command to its end, or end it after some seconds; its exit code and the end of what it printed."""
    command = [sys.executable, "-m", "penstock", *arguments]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment_of_children(), start_new_session=True
        )
        late = ""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            late = f"\nended after {seconds:.0f} s, as it had not come to its end"
        output.seek(max(0, output.seek(0, os.SEEK_END) - MOST_TEXT))
        text = output.read().decode("utf-8", "replace")
    return process.returncode, text.strip() + late


def _told(run: Run, action: Action, command: str, code: int, who: str) -> str:
    """Tell the run's history of it; what is to be said where that cannot be done."""
    what = f"asked on the page to {action.kind}: {command}" + ("" if code == 0 else f" (exit code {code})")
    try:
        append_event(run.path, "note", what, command=action.kind, who=who, exit=code)
    except (UserError, OSError) as error:
        return f"\nthe history could not be told: {error}"
    return ""
