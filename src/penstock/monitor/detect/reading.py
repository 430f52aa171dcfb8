"""What detectors read from a step's table: columns by pattern, one value for all ranks, the layer that a name speaks of."""

from __future__ import annotations

import fnmatch
import re

import numpy as np

from penstock.monitor.detect.finding import Finding
from penstock.monitor.series.table import Names, StepTable


class Columns:
    """Columns whose names match a pattern; names that come later are looked at once."""

    def __init__(self, *patterns: str) -> None:
        self._patterns = patterns
        self._looked = 0
        self._columns: list[int] = []

    def of(self, names: Names, width: int) -> list[int]:
        """Matching columns below `width`, in the order of the names."""
        for column in range(self._looked, min(width, len(names))):
            if any(fnmatch.fnmatchcase(names.all[column], pattern) for pattern in self._patterns):
                self._columns.append(column)
        self._looked = max(self._looked, min(width, len(names)))
        return self._columns


def layer_of(name: str) -> int | None:
    """The layer that a metric's name speaks of."""
    found = re.search(r"layer\.(\d+)", name)
    return int(found[1]) if found else None


def typical(table: StepTable, name: str) -> float:
    """The median over the ranks whose value is finite; NaN if there is none."""
    values = table.of(name)
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def apart(values_r: np.ndarray) -> np.ndarray:
    """How far each rank lies above the median of the others, [ranks]; NaN for one that measured nothing or is alone."""
    result = np.full(len(values_r), np.nan)
    finite = np.flatnonzero(np.isfinite(values_r))
    for rank in finite if len(finite) > 1 else ():
        result[rank] = values_r[rank] - np.median(values_r[finite[finite != rank]])
    return result


class Silent:
    """A detector to which time without rows says nothing."""

    def silence(self, now: float) -> list[Finding]:
        """Nothing."""
        return []
