"""A rank's heartbeat: generation, step, phase and when it began, in a place that the supervisor reads (`survive/`).

The place is 64 bytes of a file in memory that all processes of a run map, one place for each process. Writing there is a matter of microseconds and
needs no call of the system, so every phase of every step is told. A reader may meet a beat half written, and looks again.

A rank that nobody watches over writes into memory of its own. Who wants to know how long a recovery took asks the heart to be called when the first
step is through.

Where the environment names a module in `LISTENER`, its `hear` is told of every beat too, in the rank: so the fault lab (`lab/chaos`) acts at an
exact place of a run. Without the variable nothing is imported, and a beat costs one look at a None more.
"""

from __future__ import annotations

import importlib
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.engine.build import Parts

#: What a rank may be in; a phase of the step that is not among them counts as the first.
PHASES = (
    "step", "start", "data", "forward_backward", "exchange", "optimizer", "check", "evaluation", "snapshot", "finish", "broken", "waiting", "command",
    "parted",
)  # fmt: skip
#: Bytes of a place, and the numbers in it: generation, step, steps taken in this generation, phase, seconds of the last step, when this beat was.
PLACE, _BEAT = 64, struct.Struct("<qqqqdd")
#: Environment variable with the name of a module whose `hear(generation, step, phase)` is told of the beats of ranks that are watched over.
LISTENER = "PENSTOCK_LISTENER"


@dataclass(frozen=True)
class Beat:
    """What a rank said last: steps of the state, steps `taken` in this generation, and since when (`time.monotonic`) it is in its phase."""

    generation: int = -1
    step: int = 0
    taken: int = 0
    phase: str = "start"
    step_s: float = 0.0
    since: float = 0.0


class Heart:
    """Writes the beats of process `number` into the file `beats`, or into memory of its own."""

    def __init__(self, beats: Path | None = None, number: int = 0) -> None:
        self._place: mmap.mmap | bytearray = opened(beats) if beats else bytearray(PLACE)
        self._start = PLACE * number if beats else 0
        self._hear = _listener() if beats else None
        self._generation, self._step, self._taken, self._step_s = -1, 0, 0, 0.0
        self._first: Callable[[Parts], None] | None = None

    def begin(self, generation: int) -> None:
        """A generation of ranks begins."""
        self._generation, self._taken = generation, 0
        self.says("start")

    def at(self, step: int) -> None:
        """The state is that of so many steps."""
        self._step = step

    def says(self, phase: str) -> None:
        """This rank comes to another phase."""
        number = PHASES.index(phase) if phase in PHASES else 0
        _BEAT.pack_into(self._place, self._start, self._generation, self._step, self._taken, number, self._step_s, time.monotonic())
        if self._hear is not None:
            self._hear(self._generation, self._step, phase)

    def then(self, first: Callable[[Parts], None]) -> None:
        """Call this when the next step is through."""
        self._first = first

    def after_step(self, parts: Parts, seconds: float) -> None:
        """A step that took `seconds` is through."""
        self._step, self._taken, self._step_s = parts.progress.step, self._taken + 1, seconds
        self.says("step")
        self.goes_on(parts)

    def goes_on(self, parts: Parts) -> None:
        """Call whoever waits for the run to go on."""
        first, self._first = self._first, None
        if first is not None:
            first(parts)


def _listener() -> Callable[[int, int, str], None] | None:
    """Who else is to hear of the beats, if anybody."""
    name = os.environ.get(LISTENER)
    return importlib.import_module(name).hear if name else None


def opened(beats: Path) -> mmap.mmap:
    """The file of all places, mapped."""
    with open(beats, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def read_beat(places: mmap.mmap, number: int) -> Beat:
    """The last beat of a process."""
    start = PLACE * number
    while True:
        seen = places[start : start + _BEAT.size]
        if seen == places[start : start + _BEAT.size]:
            break
    generation, step, taken, phase, step_s, since = _BEAT.unpack(seen)
    return Beat(generation, step, taken, PHASES[phase], step_s, since) if since else Beat()
