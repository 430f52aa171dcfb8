"""What all ranks measured in one step: a table of ranks by metrics, and the names of its columns.

A metric's name is `quantity/where`, such as `grad_norm/layer.03.ffn` or `time/step`; its column is the same as long as the run's monitor lives.
What a rank did not measure is `ABSENT`, a NaN of its own bits, so that a NaN which *was* measured stays one. Cost: one array of float64 a step.
When not to use it: for text (events, samples), which has rows of its own (`monitor/store.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: The NaN that says "not measured", and its bits.
ABSENT_BITS = 0x7FF8_0000_00AB_5E27
ABSENT = struct.unpack("<d", struct.pack("<Q", ABSENT_BITS))[0]


class Names:
    """Names of metrics and their columns; names are only added."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.all: list[str] = []
        self._columns: dict[str, int] = {}
        for name in names:
            self.column(name)

    def __len__(self) -> int:
        return len(self.all)

    def column(self, name: str) -> int:
        """The column of a metric, a new one if it is new."""
        if name not in self._columns:
            self._columns[name] = len(self.all)
            self.all.append(name)
        return self._columns[name]

    def find(self, name: str) -> int | None:
        """The column of a metric, None if there is none."""
        return self._columns.get(name)


@dataclass(frozen=True)
class StepTable:
    """Values of a step by rank and metric, float64 [ranks, metrics], `ABSENT` where a rank did not measure; `time` (unix seconds) is its end.

    There may be fewer columns than names, when names came later.
    """

    step: int
    time: float
    names: Names
    ranks: tuple[int, ...]
    values_rm: np.ndarray

    @cached_property
    def measured_rm(self) -> np.ndarray:
        """Where a rank measured something, NaN and infinity among it; bool [ranks, metrics]."""
        return np.ascontiguousarray(self.values_rm).view(np.uint64) != ABSENT_BITS

    @cached_property
    def finite_rm(self) -> np.ndarray:
        """Where a rank measured a finite number; bool [ranks, metrics]."""
        return np.isfinite(self.values_rm)

    def of(self, name: str) -> np.ndarray:
        """What each rank measured of a metric, float64 [ranks]; `ABSENT` throughout for one that nobody knows."""
        column = self.names.find(name)
        if column is None or column >= self.values_rm.shape[1]:
            return np.full(len(self.ranks), ABSENT)
        return self.values_rm[:, column]
