"""What one rank measures in a step, gathered into one row of float64 and handed to a log: scalars, counters, histograms.

    recorder.put("optim/lr", 3e-4)                  a scalar; the last of a step counts
    recorder.put_all(recorder.columns(names), values)   many at once, without a look-up each
    recorder.count("fault/exchanges_repeated")      a counter: what came to it in this step
    recorder.observe("wait/call", seconds)          a histogram: its count, median, 95th percentile and maximum
    recorder.write(step, time)                      the row goes to the log, and the next begins

A metric's column is found at its first value and stays; what is not measured in a step is `ABSENT` in its row. Values are plain numbers: whoever
measures on a device reads there when the step has been waited for anyway. Bounds: `MOST_NAMES` columns (further names are dropped and counted), one
row and one list a histogram of memory. Cost: some 0.15 µs a scalar, 10 ns a value put with others, and the log's write. When not to use it: for
text, and for other threads than the one that trains (`aside.py` works beside it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from penstock.monitor.series.table import ABSENT, Names

#: Most columns of a rank; a run whose layers and collectives need more loses those that come last.
MOST_NAMES = 16384
#: Most observations of a histogram in a step; more are counted, not kept.
MOST_OBSERVED = 4096
#: What a histogram is told by.
QUANTILES = ("count", "p50", "p95", "max")


class RowSink(Protocol):
    """Where rows go: a rank's log."""

    def names(self, names: list[str]) -> None:
        """All names of the columns of the rows from here on."""

    def append(self, step: int, time: float, row: np.ndarray) -> bool:
        """Add a row, float64 [names], of a step that ended at `time` (unix seconds); False if it was dropped."""

    def close(self) -> None:
        """No more rows come."""


class Recorder:
    """Builds the rows of one rank."""

    def __init__(self, sink: RowSink, most_names: int = MOST_NAMES) -> None:
        self._sink, self._most, self._told = sink, most_names, 0
        self._names = Names()
        self._row = np.full(64, ABSENT)
        self._groups: dict[tuple[str, ...], np.ndarray] = {}
        self._observed: dict[str, list[float]] = {}
        #: Rows that the log did not take, values that had no column any more, and observations beyond a histogram's bound.
        self.dropped_rows, self.dropped_values, self.dropped_observations = 0, 0, 0

    @property
    def names(self) -> list[str]:
        """The metrics so far, by column."""
        return self._names.all

    def put(self, name: str, value: float) -> None:
        """A metric's value in this step."""
        column = self._column(name)
        if column >= 0:
            self._row[column] = value

    def put_each(self, values: Mapping[str, float]) -> None:
        """The values of several metrics in this step."""
        for name, value in values.items():
            self.put(name, value)

    def columns(self, names: tuple[str, ...]) -> np.ndarray:
        """The columns of metrics that always come together, for `put_all`; those for which there is no room are left out by it."""
        if names not in self._groups:
            if len(self._groups) >= self._most:
                self._groups.clear()
            self._groups[names] = np.array([self._column(name) for name in names], dtype=np.int64)
        return self._groups[names]

    def put_all(self, columns: np.ndarray, values: np.ndarray | Sequence[float]) -> None:
        """The values of metrics in this step by their columns."""
        if len(columns) and columns.min() < 0:
            kept = columns >= 0
            columns, values = columns[kept], np.asarray(values)[kept]
        self._row[columns] = values

    def count(self, name: str, n: float = 1.0) -> None:
        """Add to a counter of this step."""
        column = self._column(name)
        if column >= 0:
            before = self._row[column]
            self._row[column] = n if np.isnan(before) else before + n

    def observe(self, name: str, value: float) -> None:
        """One of many values of a metric in this step; told as `name.count`, `.p50`, `.p95` and `.max`."""
        values = self._observed.setdefault(name, [])
        if len(values) < MOST_OBSERVED:
            values.append(value)
        else:
            self.dropped_observations += 1

    def write(self, step: int, time: float) -> None:
        """Hand the row of `step`, which ended at `time` (unix seconds), to the log, and begin the next."""
        for name, values in self._observed.items():
            if values:
                self.put_all(self.columns(tuple(f"{name}.{what}" for what in QUANTILES)), quantiles(values))
                values.clear()
        n = len(self._names)
        if n > self._told:
            self._sink.names(list(self._names.all))
            self._told = n
        self.dropped_rows += not self._sink.append(step, time, self._row[:n])
        self._row[:n] = ABSENT

    def close(self) -> None:
        """No more rows come."""
        self._sink.close()

    def _column(self, name: str) -> int:
        """The column of a metric; -1, and a drop counted, where there is no room for another."""
        column = self._names.find(name)
        if column is not None:
            return column
        if len(self._names) >= self._most:
            self.dropped_values += 1
            return -1
        column = self._names.column(name)
        if column >= len(self._row):
            self._row = np.concatenate((self._row, np.full(len(self._row), ABSENT)))
        return column


def quantiles(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Number, median, 95th percentile (nearest rank) and maximum of some values."""
    ordered = sorted(values)
    n = len(ordered)
    return float(n), ordered[(n - 1) // 2], ordered[max(0, -(-95 * n // 100) - 1)], ordered[-1]
