"""A metric's course: its five numbers at the steps where it was measured, gathered piece by piece within bounded memory.

Cost: a gatherer of n points holds at most 4 n rows of 44 bytes and thins them when they are more (`thin.py`). Where it is known how many rows there
will be, each piece is thinned to its share of them as it comes, so that a long course is looked at once. When not to use it: for all ranks' own
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
#: Rows of a piece that are kept at least.
LEAST = 8
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
    """Takes pieces of a metric's course, of about `expected` rows (0: nobody knows); with `points` > 0 at most about so many rows come out."""

    def __init__(self, name: str, kind: Kind, points: int, expected: int = 0) -> None:
        self._name, self._kind, self._points = name, kind, points
        #: Rows of a piece that are kept, as a share of them.
        self._share = min(1.0, SLACK * points / expected) if points and expected else 1.0
        self._pieces: list[tuple[np.ndarray, ...]] = []
        self._rows = 0
        self.measured = 0

    def add(self, steps: np.ndarray, times: np.ndarray, five: list[np.ndarray]) -> None:
        """A piece that follows those before: steps, times and the five numbers, [rows] each; rows in which it was not measured are left out."""
        there = np.ascontiguousarray(five[0]).view(np.uint64) != ABSENT_BITS
        piece = (steps, times, *five)
        piece = piece if there.all() else tuple(column[there] for column in piece)
        self.measured += len(piece[0])
        piece = self._thinned(piece, max(LEAST, int(self._share * len(piece[0])))) if self._share < 1.0 else piece
        self._pieces.append(piece)
        self._rows += len(piece[0])
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
        self._pieces = [self._thinned(self._joined(), points)]
        self._rows = len(self._pieces[0][0])

    def _thinned(self, piece: tuple[np.ndarray, ...], points: int) -> tuple[np.ndarray, ...]:
        if len(piece[0]) <= points:
            return piece
        kept = extremes(piece[3], piece[4], points)
        return tuple(column[kept] for column in piece)
