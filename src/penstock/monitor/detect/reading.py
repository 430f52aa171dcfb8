"""What detectors read from a step's table: columns by pattern, one value for all ranks, the layer that a name speaks of.
"""

from __future__ import annotations

import fnmatch
import math
import re

import numpy as np

from penstock.monitor.detect.finding import Finding
from penstock.monitor.series.table import Names, StepTable


class Columns:
    """Columns whose names match a pattern; names that come later are looked at once."""

    def __init__(self, *patterns: str) -> None:
        self._patterns = patterns
        self._looked = 0
        self._columns = np.zeros(0, dtype=np.intp)

    def of(self, names: Names, width: int) -> np.ndarray:
        """Matching columns below `width`, in the order of the names."""
        if self._looked < min(width, len(names)):
            new = range(self._looked, min(width, len(names)))
            found = [column for column in new if any(fnmatch.fnmatchcase(names.all[column], pattern) for pattern in self._patterns)]
            self._columns, self._looked = np.append(self._columns, np.array(found, dtype=np.intp)), new.stop
        return self._columns


def layer_of(name: str) -> int | None:
    """The layer that a metric's name speaks of."""
    found = re.search(r"layer\.(\d+)", name)
    return int(found[1]) if found else None


def typical(table: StepTable, name: str) -> float:
    """The median over the ranks whose value is finite; NaN if there is none."""
    return _median(sorted(value for value in table.of(name).tolist() if math.isfinite(value)))


def by_rank(ranks: tuple[int, ...], values_r: np.ndarray) -> np.ndarray:
    """Values of the ranks that have a row, in the places of their numbers, NaN for the others; [highest rank + 1]."""
    if not ranks or ranks[-1] + 1 == len(ranks):
        return values_r
    placed = np.full(ranks[-1] + 1, np.nan)
    placed[list(ranks)] = values_r
    return placed


#: What a step's work is made of: where one of these changes, times, waits, memory and tokens are others by right.
WORK = ("data/tokens", "data/micro_batch", "cost/flops_per_token", "cost/ranks", "cost/way")


class Work:
    """Notices that a step's work is another than that of the step before."""

    def __init__(self) -> None:
        self._before: tuple[float, ...] = ()
        self._columns, self._raw = Columns(*WORK), (-1, b"")

    def changed(self, table: StepTable, generation: int) -> bool:
        """Whether it changed with this step; a new generation has new processes. What is not measured counts as unchanged."""
        values_rw = table.values_rm[:, self._columns.of(table.names, table.values_rm.shape[1])]
        raw, self._raw = self._raw, (generation, values_rw.tobytes())
        if raw == self._raw:
            return False
        now = (float(generation), *(typical(table, name) for name in WORK))
        before, self._before = self._before or now, now
        return any(a != b for a, b in zip(now, before) if not (math.isnan(a) or math.isnan(b)))


def number(values: np.ndarray) -> np.ndarray:
    """The values, 0 where they are no finite numbers (`numpy.nan_to_num` takes ten times as long for a few)."""
    return np.where(np.isfinite(values), values, 0.0)


def apart(values_r: np.ndarray) -> np.ndarray:
    """How far each rank lies above the median of the others, [ranks]; NaN for one that measured nothing or is alone."""
    finite = np.flatnonzero(np.isfinite(values_r))
    result, others = np.full(len(values_r), np.nan), len(finite) - 1
    if others < 1:
        return result
    rows = finite[values_r[finite].argsort()]
    ordered, place = values_r[rows], np.arange(len(rows))
    # Of those without the one at a place, the k-th is the k-th of all below that place, and the next from there on.
    low, high = (ordered[k + (place <= k)] for k in ((others - 1) // 2, others // 2))
    result[rows] = ordered - (low + high) / 2
    return result


def _median(ordered: list[float]) -> float:
    """The median of sorted numbers, NaN of none; for a few of them `numpy.median` takes thirty times as long."""
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2 if n else math.nan


class Silent:
    """A detector to which time without rows says nothing, and neither do changes of the work."""

    def renew(self) -> None:
        """Nothing."""

    def silence(self, now: float) -> list[Finding]:
        """Nothing."""
        return []
