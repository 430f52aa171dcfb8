"""A metric's course: its five numbers at the steps where it was measured, gathered piece by piece within bounded memory.

Cost: a gatherer of n points holds at most 4 n rows of 44 bytes and thins them when they are more (`thin.py`). When not to use it: for all ranks' own
values, of which a course has the lowest, the highest and the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.monitor.series.kinds import Kind
from penstock.monitor.series.table import ABSENT_BITS
from penstock.monitor.series.thin import extremes

#: Rows that a gatherer holds, as a multiple of the points asked for, before it thins them.
SLACK = 4
#: Bytes of a row.
ROW_BYTES = 52


@dataclass(frozen=True)
class Course:
    """Rows of a metric, oldest first: steps int64, times float64 (unix seconds), value, low, high float64, low_rank, high_rank int32; all [rows]."""

    name: str
    kind: Kind
    steps: np.ndarray
    times: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_rank: np.ndarray
    high_rank: np.ndarray
    #: Rows before they were thinned.
    measured: int


class Gatherer:
    """Takes pieces of a metric's course; with `points` > 0 at most about so many rows come out."""

    def __init__(self, name: str, kind: Kind, points: int) -> None:
        self._name, self._kind, self._points = name, kind, points
        self._pieces: list[tuple[np.ndarray, ...]] = []
        self._rows = 0
        self.measured = 0

    def add(self, steps: np.ndarray, times: np.ndarray, five: list[np.ndarray]) -> None:
        """A piece that follows those before: steps, times and the five numbers, [rows] each; rows in which it was not measured are left out."""
        there = np.ascontiguousarray(five[0]).view(np.uint64) != ABSENT_BITS
        piece = [steps, times, *five]
        self._pieces.append(tuple(piece) if there.all() else tuple(column[there] for column in piece))
        count = int(there.sum())
        self._rows, self.measured = self._rows + count, self.measured + count
        if self._points and self._rows > SLACK * self._points:
            self._thin(2 * self._points)

    def course(self) -> Course:
        """What came together."""
        if self._points:
            self._thin(self._points)
        steps, times, value, low, high, low_rank, high_rank = self._joined()
        return Course(self._name, self._kind, steps, times, value, low, high, low_rank, high_rank, self.measured)

    def _joined(self) -> tuple[np.ndarray, ...]:
        if not self._pieces:
            floats, ranks = [np.zeros(0)] * 4, [np.zeros(0, np.int32)] * 2
            return np.zeros(0, np.int64), *floats, *ranks
        return tuple(np.concatenate(columns) for columns in zip(*self._pieces))

    def _thin(self, points: int) -> None:
        columns = self._joined()
        kept = extremes(columns[3], columns[4], points)
        self._pieces, self._rows = [tuple(column[kept] for column in columns)], len(kept)
