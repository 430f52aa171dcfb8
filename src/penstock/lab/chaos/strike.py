"""In the ranks: hears every beat of the heart (`engine/guard/heart.py`), and strikes where the plan has it.

Imported by a rank whose environment names it, and by nobody else. Faults that are due at once strike in the main thread, at the very begin of their
phase; those with a delay from a thread of their own, wherever the rank is by then.

Cost: a look into a dict a phase.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path

from penstock.lab.chaos.acts import ACTS, SLOW_STEPS, STALL_S, Place, kill, snapshots_there
from penstock.lab.chaos.desk import FOLDER, Desk
from penstock.lab.chaos.kinds import KINDS
from penstock.lab.chaos.plan import NEWCOMER, RECOVERY, Fault

#: Longest wait, seconds, for a snapshot that is needed and may be on its way; it must not look like a hang. Between two looks for it.
WRITTEN_S, LOOK_S = 1.5, 0.02


class Striker:
    """Strikes this rank."""

    def __init__(self, folder: Path) -> None:
        self._desk = Desk(folder)
        self._run, faults = self._desk.plan()
        self._faults: dict[tuple[int, str], list[Fault]] = {}
        for fault in faults:
            self._faults.setdefault((fault.step, fault.phase), []).append(fault)
        self._second = [fault for fault in faults if fault.then]
        self._turns: Counter[str] = Counter()
        self._at, self._generation = (-1, -1), -1
        self._write = os.write
        self._slow, self._slow_until = 0.0, 0
        self._desk.register(NEWCOMER, self._generation)

    def hear(self, generation: int, step: int, phase: str) -> None:
        """A rank comes to a phase, with the state of `step`."""
        if (generation, step) != self._at:
            self._at = generation, step
            self._turns.clear()
        turn = self._turns[phase]
        self._turns[phase] += 1
        if phase in RECOVERY:
            self._strike_second(generation, phase)
        elif phase == "data" and generation != self._generation:
            self._generation = generation
            os.write = self._write  # the disk has room again
            self._desk.register(_rank(), generation)
        for fault in self._faults.get((step, phase), ()):
            if fault.turn == turn and fault.rank % _size() == _rank():
                self._strike(fault, generation)
        if self._slow and step < self._slow_until:
            time.sleep(self._slow)

    def _strike(self, fault: Fault, generation: int) -> None:
        if not fault.delay_s:
            self._act(fault, generation)
        else:
            threading.Timer(fault.delay_s, self._act, (fault, generation)).start()

    def _act(self, fault: Fault, generation: int) -> None:
        kind, place = KINDS[fault.kind], Place(self._desk, self._run, generation)
        end = time.monotonic() + WRITTEN_S
        while (there := snapshots_there(self._run) if kind.snapshots else 0) < kind.snapshots and time.monotonic() < end:
            time.sleep(LOOK_S)
        why = f"{kind.snapshots} snapshots must be there, and there were {there}" if there < kind.snapshots else ""
        if not self._mark(str(fault.number), generation, why) or why:
            return
        if kind.act == "slow":
            self._slow, self._slow_until = STALL_S[fault.choice], fault.step + SLOW_STEPS
        else:
            ACTS[kind.act](fault, place)

    def _strike_second(self, generation: int, phase: str) -> None:
        """Strike a rank that recovers from another's death."""
        for fault in self._second:
            first = self._desk.has_mark(str(fault.number))
            due = first is not None and fault.then == phase and generation == first["generation"] + (phase == "start")
            if due and _rank() == (NEWCOMER if fault.other == NEWCOMER else fault.other % _size()):
                threading.Timer(fault.then_delay_s, self._act_second, (fault, generation)).start()

    def _act_second(self, fault: Fault, generation: int) -> None:
        if self._mark(f"{fault.number}-then", generation):
            kill(fault, Place(self._desk, self._run, generation))

    def _mark(self, name: str, generation: int, skipped: str = "") -> bool:
        return self._desk.mark(name, self._run, time=time.time(), rank=_rank(), generation=generation, skipped=skipped)


def _rank() -> int:
    """This process's rank; `NEWCOMER` before it has had one."""
    return int(os.environ.get("RANK", NEWCOMER))


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


#: What a heart calls.
hear = Striker(Path(os.environ[FOLDER])).hear
