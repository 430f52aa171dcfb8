"""Rows of all ranks put together by step: tables in order, with what is late or dead not waited for too long, and what is replaced left out.

A step is whole when each rank of its generation has a row of it, or a row of a later step (its own was dropped). Else it is waited for: `late_s`
seconds from its first row, and as long as what waits fits `most_bytes`; then it goes out without those ranks. Rows that come after that are counted
as late and left out. A generation that goes on after step s replaces what older ones have of later steps; what had gone out by then is masked by
whoever keeps it (`last_steps`). Cost: about 2 µs a rank and step; memory for the steps that wait. When not to use it: for a single rank's
own rows, which need no merge.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from penstock.monitor.series.table import ABSENT, Names, StepTable
from penstock.monitor.series.tail import Rows

#: Seconds that a step waits for late ranks, and bytes of rows that may wait.
LATE_S, WAITING_BYTES = 1.0, 64 << 20

#: Stands for the last step where there is none.
NO_END = (1 << 63) - 1

#: Generation and step, the order in which things went on.
Key = tuple[int, int]


@dataclass(frozen=True)
class Merged:
    """A step's table and its generation; `missing` are ranks of it that have no row."""

    generation: int
    table: StepTable
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Generation:
    """A stretch of steps that goes on after step `after` with so many ranks."""

    number: int
    after: int
    ranks: int


def last_steps(generations: list[Generation]) -> dict[int, int]:
    """The last step of each generation that no later one replaces."""
    steps, least = {}, NO_END
    for generation in sorted(generations, key=lambda generation: -generation.number):
        steps[generation.number] = least
        least = min(least, generation.after)
    return steps


@dataclass
class _Waiting:
    since: float
    rows: dict[int, tuple[float, np.ndarray, np.ndarray | None]] = field(default_factory=dict)
    bytes: int = 0


class Merger:
    """Takes ranks' rows and gives tables; `through` is the last key that has been given before, by whoever read this run earlier."""

    def __init__(self, names: Names | None = None, through: Key = (-1, -1), late_s: float = LATE_S, most_bytes: int = WAITING_BYTES) -> None:
        self.names = names if names is not None else Names()
        self.generations: dict[int, Generation] = {}
        #: Rows that came after their step had gone out.
        self.late = 0
        self._read_before, self._given = through, through
        self._late_s, self._most_bytes = late_s, most_bytes
        self._until: dict[int, int] = {}
        self._waiting: dict[Key, _Waiting] = {}
        self._bytes = 0
        self._reached: dict[int, Key] = {}
        self._columns: dict[tuple[str, ...], np.ndarray | None] = {}

    def add(self, rows: Rows, now: float) -> None:
        """Take in rows of a rank that arrived at `now` (any clock, seconds)."""
        about = rows.about
        self.meet(Generation(about.generation, about.after, about.ranks))
        columns = self._columns_of(about.names)
        for i, (step, time) in enumerate(zip(rows.steps.tolist(), rows.times.tolist())):
            key = about.generation, step
            if key <= self._given:
                self.late += key > self._read_before
            elif self._stands(key):
                self._wait(key, about.rank, (time, rows.values_rn[i], columns), now)
            self._reached[about.rank] = max(key, self._reached.get(about.rank, key))

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the rows that wait."""
        return self._bytes

    def ready(self, now: float, more: bool = False) -> list[Merged]:
        """Steps that are whole, or have waited long enough, in order; with `more` to be read at once, only the former and what does not fit."""
        given = []
        for key in sorted(self._waiting):
            waiting = self._waiting[key]
            late = now - waiting.since > self._late_s and not more
            if not (late or self._bytes > self._most_bytes or self._whole(key, waiting)):
                break
            given.append(self._give(key))
        return given

    def rest(self) -> list[Merged]:
        """All that still waits, in order: the end."""
        return [self._give(key) for key in sorted(self._waiting)]

    def meet(self, generation: Generation) -> None:
        """Know a generation; what waits and is replaced by it is dropped."""
        if generation.number in self.generations:
            return
        self.generations[generation.number] = generation
        self._until = last_steps(list(self.generations.values()))
        for key in [key for key in self._waiting if not self._stands(key)]:
            self._bytes -= self._waiting.pop(key).bytes

    def _stands(self, key: Key) -> bool:
        return key[1] <= self._until[key[0]]

    def _wait(self, key: Key, rank: int, row: tuple[float, np.ndarray, np.ndarray | None], now: float) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Waiting(now)
        if rank not in waiting.rows:
            waiting.bytes += row[1].nbytes
            self._bytes += row[1].nbytes
        waiting.rows[rank] = row

    def _whole(self, key: Key, waiting: _Waiting) -> bool:
        ranks = self.generations[key[0]].ranks
        if len(waiting.rows) >= ranks:
            return True
        nowhere = (-1, -1)
        return all(rank in waiting.rows or self._reached.get(rank, nowhere) > key for rank in range(ranks))

    def _give(self, key: Key) -> Merged:
        waiting = self._waiting.pop(key)
        self._bytes -= waiting.bytes
        self._given = max(self._given, key)
        ranks = tuple(sorted(waiting.rows))
        missing = tuple(rank for rank in range(self.generations[key[0]].ranks) if rank not in waiting.rows)
        values = np.full((len(ranks), len(self.names)), ABSENT)
        for i, rank in enumerate(ranks):
            _, row, columns = waiting.rows[rank]
            if columns is None:
                values[i, : len(row)] = row
            else:
                values[i, columns] = row
        time = max(time for time, _, _ in waiting.rows.values())
        return Merged(key[0], StepTable(key[1], time, self.names, ranks, values), missing)

    def _columns_of(self, names: tuple[str, ...]) -> np.ndarray | None:
        """The columns of a row's values; None where they are the first ones in order."""
        if names not in self._columns:
            columns = np.array([self.names.column(name) for name in names], dtype=np.intp)
            self._columns[names] = None if (columns == np.arange(len(columns))).all() else columns
        return self._columns[names]
