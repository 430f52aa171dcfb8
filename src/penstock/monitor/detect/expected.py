"""What the detectors want held against its expectation, all of it in one `Baseline`: one vectorised update a step instead of one a detector.

A detector asks once for a `Part`: a function that reads some values from a step's table. `Expected.update` reads the parts, puts their values into
one vector and updates the baseline; then each detector finds its slice in `part.against`. Parts grow with the metrics and the ranks that they read.
Where the work of a step changes (another batch, model or number of ranks, new processes), all is learned anew but what lasts. Cost: some 250 µs a
step for 500 values, where each detector with a baseline of its own took about 100 µs. When not to use it: for a value that itself comes of an
expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from penstock.monitor.detect.baseline import Against, Baseline
from penstock.monitor.detect.reading import typical
from penstock.monitor.series.table import StepTable

#: Reads values from a step: [values], as many as at the step before or more.
Read = Callable[[StepTable], np.ndarray]


class Part:
    """Values of one reader, where they lie in the whole, and after each step what was expected of them."""

    def __init__(self, whole: Expected, read: Read, lasts: bool) -> None:
        self._whole, self.read, self.lasts = whole, read, lasts
        self.values_m = np.zeros(0)
        #: A slice as long as the values lie side by side, which costs no copy.
        self.where_m: slice | np.ndarray = slice(0, 0)
        self.count = 0

    @property
    def against(self) -> Against:
        """The step's values against their expectation, [values]."""
        return self._whole.against.of(self.where_m)

    def forget(self) -> None:
        """Begin anew, as after a change that was told."""
        self._whole.forget(self.where_m)

    def forget_one(self, i: int) -> None:
        """Begin anew for one of the values."""
        self._whole.forget(_indices(self.where_m)[i : i + 1])

    def place(self, begin: int, more: int) -> None:
        """So many more values lie from `begin` on."""
        whole = np.concatenate([_indices(self.where_m), np.arange(begin, begin + more)])
        self.count = len(whole)
        beside = whole[-1] - whole[0] + 1 == self.count
        self.where_m = slice(int(whole[0]), int(whole[-1]) + 1) if beside else whole


class Expected:
    """Expectations of all detectors; `update` before they look at the step."""

    def __init__(self) -> None:
        self._baseline = Baseline(0)
        self._parts: list[Part] = []
        self._typical: dict[tuple[str, bool], Part] = {}
        self.against = self._baseline.update(np.zeros(0))

    def part(self, read: Read, lasts: bool = False) -> Part:
        """A part of one's own; one that `lasts` is of the model, which goes on where the work of a step changes."""
        self._parts.append(Part(self, read, lasts))
        return self._parts[-1]

    def typical(self, name: str, log: bool = False, lasts: bool = False) -> Part:
        """The part that holds the median over ranks of a metric, or its logarithm; the same for all who ask."""
        if (name, log) not in self._typical:
            self._typical[name, log] = self.part(lambda table: np.array([_log(typical(table, name)) if log else typical(table, name)]), lasts)
        return self._typical[name, log]

    def renew(self) -> None:
        """Begin anew with all that does not last."""
        for part in self._parts:
            if not part.lasts:
                part.forget()

    def forget(self, where_m: slice | np.ndarray) -> None:
        """Begin anew for some values."""
        self._baseline.forget(where_m)

    def update(self, table: StepTable) -> None:
        """Take a step in."""
        for part in self._parts:
            part.values_m = part.read(table)
            more = len(part.values_m) - part.count
            if more < 0:  # the last ranks have no row of this step
                part.values_m = np.pad(part.values_m, (0, -more), constant_values=np.nan)
            elif more > 0:
                begin = len(self._baseline)
                self._baseline.grow(begin + more)
                part.place(begin, more)
        values_m = np.full(len(self._baseline), np.nan)
        for part in self._parts:
            values_m[part.where_m] = part.values_m
        self.against = self._baseline.update(values_m)


def _indices(where_m: slice | np.ndarray) -> np.ndarray:
    return np.arange(where_m.start, where_m.stop) if isinstance(where_m, slice) else where_m


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan
