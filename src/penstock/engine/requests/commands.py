"""Commands to a run that trains: files in its folder, which its lead rank finds between two steps.

    RUN/commands/NAME.json           a command, written whole: its kind, arguments, who sent it, until when it counts
    RUN/commands/NAME.held.json      one that must not be carried out before NAME.ready is there (what it needs is being made ready)
    RUN/commands/NAME.taken          the lead has it, and it can no longer be taken back
    RUN/commands/NAME.answer.json    what became of it; whoever sent it removes that

Names begin with the time, so that commands are carried out in the order in which they came. Taking one and taking it back are both renames of the
same file, so only one of them happens. Whether something waits is one more number in the sum that every step makes anyway (`step.local_totals`), so
all ranks learn of it after the same step, without an exchange of its own; what they do then stands in `obey.py`. Only files of the run's own user
(or root's) are commands.

Cost: reading an empty folder on the lead, some 10 microseconds a step, and 8 bytes in the sum. When not to use it: for what must reach a rank inside
a step; a signal does that (`engine/control.py`).
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from penstock.config import UserError
from penstock.store import LocalFolder, Run, current_writer, run_state

FOLDER = "commands"
HELD, TAKEN, ANSWER, READY = ".held.json", ".taken", ".answer.json", ".ready"
#: Seconds between two looks for an answer, and how long nobody may hold the run's lock before it is held to have ended (a new lead takes it over).
LOOK_S, GONE_S = 0.02, 5.0
#: Files left by whom no answer reached are removed when they are so many seconds old.
STALE_S = 3600.0


@dataclass(frozen=True)
class Command:
    """What a running run is asked to do; `until` is the time (seconds since 1970) after which nobody waits for it any more."""

    name: str
    kind: str
    arguments: dict[str, Any]
    who: str
    until: float


@dataclass(frozen=True)
class Answer:
    """What became of a command: a sentence, the step after which it was carried out or refused, the seconds it took, and further facts.

    `told`: whether it stands in the run's history already.
    """

    state: Literal["done", "refused"]
    text: str
    step: int = 0
    seconds: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)
    told: bool = False


def send(run_folder: Path, kind: str, arguments: dict[str, Any], wait_s: float, hold: bool = False) -> Answer:
    """Send a command to a run and wait for its answer; raises `UserError` where the run does not live or is not yours, or does not answer in time.

    One on `hold` waits for `release`; whoever is to make ready for it finds it by `pending`.
    """
    run = Run(run_folder)
    _check_yours(run)
    if current_writer(run_folder) is None:
        raise UserError(f"{run_folder} does not run ({run_state(run)}), so it takes no commands; go on with it by `penstock resume {run_folder}`")
    now = time.time()
    name = f"{time.time_ns():020d}-{secrets.token_hex(3)}-{kind}"
    command = Command(name, kind, arguments, f"{_user(os.geteuid())}@{socket.gethostname()}", now + wait_s)
    folder, file = LocalFolder(run_folder / FOLDER), name + (HELD if hold else ".json")
    folder.write(file, json.dumps(asdict(command)).encode())
    try:
        return _answer(run, name, wait_s)
    finally:
        for left in (file, name + READY, name + ANSWER):
            folder.remove(left)


def pending(run_folder: Path) -> list[Command]:
    """The commands on hold that have not been released, the first to come first."""
    names = sorted(_names(run_folder / FOLDER))
    held = [name.removesuffix(HELD) for name in names if name.endswith(HELD)]
    found = [_read(run_folder / FOLDER / (name + HELD)) for name in held if name + READY not in names]
    return [command for command in found if command is not None]


def release(run_folder: Path, name: str) -> None:
    """What a command on hold needs is there: it is carried out after the next step."""
    LocalFolder(run_folder / FOLDER).write(name + READY, b"")


def answer(run_folder: Path, name: str, said: Answer) -> None:
    """Say what became of a command. One that was still on hold is not carried out any more."""
    folder = LocalFolder(run_folder / FOLDER)
    folder.write(name + ANSWER, json.dumps(asdict(said), default=str).encode())
    for left in (name + TAKEN, name + HELD, name + READY):
        folder.remove(left)


class Inbox:
    """The commands that wait for a run, as its lead rank sees them; without a folder there are none, which is how it is on other ranks."""

    def __init__(self, run_folder: Path | None = None) -> None:
        self._folder = run_folder / FOLDER if run_folder else None
        #: Whether some command waits, as all ranks have agreed.
        self.agreed = False
        self._sweep()

    def waits(self) -> bool:
        """Whether a command is there to be carried out."""
        return self._folder is not None and bool(_due(_names(self._folder)))

    def take(self) -> Command | None:
        """The next command, which from now on cannot be taken back; None if there is none (any more)."""
        for name, file in _due(_names(self._folder)) if self._folder else ():
            assert self._folder is not None
            taken = self._folder / (name + TAKEN)
            with suppress(OSError):  # it was taken back
                os.rename(self._folder / file, taken)
                command = _read(taken) if _of_us(taken) else None
                if command is not None and time.time() <= command.until:
                    return command
                os.unlink(taken)
        return None

    def interrupted(self) -> list[Command]:
        """What a lead had begun with when its generation of ranks ended."""
        names = sorted(name for name in _names(self._folder) if name.endswith(TAKEN)) if self._folder else []
        found = [_read(self._folder / name) for name in names] if self._folder else []
        return [command for command in found if command is not None]

    def _sweep(self) -> None:
        """Remove what nobody waits for any more."""
        for name in _names(self._folder) if self._folder else ():
            assert self._folder is not None
            with suppress(OSError):
                if time.time() - os.stat(self._folder / name).st_mtime > STALE_S:
                    os.unlink(self._folder / name)


def _due(names: list[str]) -> list[tuple[str, str]]:
    """The commands that may be carried out, in order: name and file."""
    found = []
    for file in names:
        if file.endswith(HELD):
            name = file.removesuffix(HELD)
            if name + READY in names:
                found.append((name, file))
        elif file.endswith(".json") and not file.endswith(ANSWER):
            found.append((file.removesuffix(".json"), file))
    return sorted(found)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(file: Path) -> Command | None:
    """The command in a file; None if it is gone, or not one."""
    try:
        return Command(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _answer(run: Run, name: str, wait_s: float) -> Answer:
    """Wait for the answer to a command; raises `UserError` when there is none in time, or the run ends before."""
    folder, end, seen = run.path / FOLDER, time.monotonic() + wait_s, time.monotonic()
    looked = seen
    while True:
        now = time.monotonic()
        with suppress(FileNotFoundError):
            return Answer(**json.loads((folder / (name + ANSWER)).read_text(encoding="utf-8")))
        if now - looked > 0.5:
            looked, seen = now, now if current_writer(run.path) else seen
        if now - seen > GONE_S:
            raise UserError(f"{run.path} ended ({run_state(run)}) before it answered; `penstock runs log {run.path}` tells what became of it")
        if now > end:
            raise UserError(f"{run.path} gave no answer within {wait_s:.0f} s, {_how_far(folder, name)}")
        time.sleep(LOOK_S)


def _how_far(folder: Path, name: str) -> str:
    if (folder / (name + TAKEN)).exists():
        return f"though it has begun with it; `penstock runs log {folder.parent}` will tell what became of it"
    if (folder / (name + HELD)).exists() and not (folder / (name + READY)).exists():
        return "as what it needs was not ready; the command was taken back, try again with a longer --wait"
    return "as its step, evaluation or snapshot takes longer; the command was taken back, try again with a longer --wait"


def _check_yours(run: Run) -> None:
    owner = run.path.stat().st_uid
    if os.geteuid() not in (owner, 0):
        raise UserError(f"{run.path} is a run of {_user(owner)}'s, not yours; only {_user(owner)} can ask something of it")


def _of_us(file: Path) -> bool:
    return os.stat(file).st_uid in (os.geteuid(), 0)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
