"""What each rank measured over a whole run, in bounded room: for a few metrics a picture of ranks × time, of which a heat-map is drawn.

The store keeps five numbers of all ranks a step, and the ranks' own rows go away once they are stored. So the run's monitor keeps this: for each
metric of `METRICS` that is measured, mean and maximum of every rank in every *bucket*, which is so many consecutive steps:

    buckets     as many as `CELLS` allows for the ranks there are, 512 at most and 64 at least; when there are more, neighbours are joined, and from
                then on each is twice as wide. So the whole run is there from its first step on, and the newest bucket may not be full yet
    memory      12 bytes a rank, bucket and metric: with 8 metrics 6 MB for 128 ranks, 13 MB for 1,000 ranks (131 buckets), 49 MB for 8,000 (64)
    going back  a generation that goes on after step s drops what came after s, and whole buckets where s lies within one

A measured NaN makes its bucket's numbers NaN; what a rank did not measure counts as no step. Cost: some 0.2 ms a step, and 2 µs a rank. When not to
use it: for a single step's values (the ranks' logs), or for what the whole measured (`query.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.monitor.series.gather import Gather
from penstock.monitor.series.merge import Generation, Key, Merged
from penstock.monitor.series.table import ABSENT_BITS

#: The metrics that are kept, where they are measured.
METRICS = (
    "time/own", "time/step", "wait/total", "pipeline/busy", "memory/resident", "memory/allocated", "data/tokens_read", "host/process_cpu",
    "device/busy", "device/temperature", "device/power", "device/clock",
)  # fmt: skip
#: Buckets at most and at least, and cells (buckets × ranks) of a metric beyond which there are fewer than most.
BUCKETS, LEAST_BUCKETS, CELLS = 512, 64, 1 << 17
#: Ranks that a grid takes in; more are left out.
MOST_RANKS = 1 << 16


@dataclass(frozen=True)
class Cells:
    """Mean and maximum float32 [buckets, metrics, ranks], and the number of steps of which they are, uint32; all are 0 where that is."""

    mean: np.ndarray
    most: np.ndarray
    count: np.ndarray

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three arrays."""
        return self.mean, self.most, self.count


class Grid:
    """Ranks × time of some metrics; bucket i holds the steps from `(first + i) · width` on, `last[i]` being the last that it has (0: none yet)."""

    def __init__(self, wanted: Iterable[str] = METRICS, buckets: int = BUCKETS) -> None:
        self._wanted, self._buckets = tuple(wanted), buckets
        self.width, self.first = 1, 0
        self.last = np.zeros(0, np.int64)
        self.names: list[str] = []
        self.cells = Cells(*(np.zeros((0, 0, 0), kind) for kind in (np.float32, np.float32, np.uint32)))
        #: Generation and step of the last table that was taken in, and the ranks that this generation has.
        self.through: Key = (-1, -1)
        self.ranks_of = 0

    @property
    def ranks(self) -> int:
        """Ranks that any generation had."""
        return self.cells.count.shape[2]

    @property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last step of each bucket, int64 [buckets]."""
        return (self.first + np.arange(len(self.last))) * self.width, self.last

    def of(self, name: str) -> Cells:
        """A metric's cells, [buckets, ranks]; raises ValueError for one that was never measured."""
        metric, n = self.names.index(name), len(self.last)
        return Cells(*(part[:n, metric] for part in self.cells.parts))

    def add(self, merged: Merged, generation: Generation) -> None:
        """Take in a step's table, of a generation; what was taken in before is not again."""
        table, key = merged.table, (merged.generation, merged.table.step)
        if key <= self.through or table.step < 0:
            return
        if merged.generation > self.through[0]:
            self._go_back(generation.after)
        self.through, self.ranks_of = key, generation.ranks
        found = [(name, column) for name in self._wanted if (column := table.names.find(name)) is not None and column < table.values_rm.shape[1]]
        ranks = [i for i, rank in enumerate(table.ranks) if rank < MOST_RANKS]
        values_mr = np.ascontiguousarray(table.values_rm[np.ix_(ranks, [column for _, column in found])].T)
        measured_mr = values_mr.view(np.uint64) != ABSENT_BITS
        there = np.flatnonzero(measured_mr.any(1))
        if len(there):
            numbers = np.array([table.ranks[i] for i in ranks])
            bucket = self._room(table.step, int(numbers.max()) + 1, [found[i][0] for i in there])
            self.last[bucket] = max(self.last[bucket], table.step)
            place = np.array([self.names.index(found[i][0]) for i in there])[:, None], numbers
            self._count(bucket, place, values_mr[there], measured_mr[there])

    def _count(self, bucket: int, place: tuple[np.ndarray, np.ndarray], values_mr: np.ndarray, measured_mr: np.ndarray) -> None:
        """Add a step's values to a bucket, those of metrics and ranks at `place` that were measured."""
        mean, most, count = (part[bucket][place] for part in self.cells.parts)
        after = count + measured_mr
        with np.errstate(all="ignore"):  # what is measured may be infinite, or too large for 4 bytes
            values = np.where(count > 0, mean + (values_mr - mean) / np.maximum(after, 1), values_mr)
            highest = np.where(count > 0, np.maximum(most, values_mr), values_mr)
            self.cells.mean[bucket][place] = np.where(measured_mr, values, mean)
            self.cells.most[bucket][place] = np.where(measured_mr, highest, most)
        self.cells.count[bucket][place] = after

    def _go_back(self, after: int) -> None:
        """Drop what came after a step."""
        dropped = np.flatnonzero(self.last > after)
        self.last[dropped] = 0
        for part in self.cells.parts:
            part[dropped] = 0

    def _room(self, step: int, ranks: int, names: list[str]) -> int:
        """Have room for a step of so many ranks and these metrics; the step's bucket."""
        self.names += [name for name in names if name not in self.names]
        ranks = max(ranks, self.ranks)
        most = min(self._buckets, max(LEAST_BUCKETS, CELLS // ranks))
        if not len(self.last):
            self.first = step // self.width
        while max(step // self.width, self.first + len(self.last) - 1) - min(step // self.width, self.first) >= most:
            self._join()
        before = max(0, self.first - step // self.width)
        self.first -= before
        bucket = step // self.width - self.first
        if before or bucket >= len(self.last):
            self.last = np.pad(self.last, (before, max(0, bucket + 1 - before - len(self.last))))
        wanted = max(most, len(self.last)), len(self.names), ranks  # room for all buckets there may be is made at once
        sizes = self.cells.count.shape
        if before or sizes[0] < len(self.last) or sizes[1:] != wanted[1:]:
            room = [(before, max(0, wanted[0] - before - sizes[0])), *((0, new - old) for old, new in zip(sizes[1:], wanted[1:]))]
            self.cells = Cells(*(np.pad(part, room)[: wanted[0]] for part in self.cells.parts))
        return bucket

    def _join(self) -> None:
        """Make every bucket twice as wide."""
        n, pairs = len(self.last), (self.first % 2, -(self.first + len(self.last)) % 2)
        self.last = np.pad(self.last, pairs).reshape(-1, 2).max(1)
        self.first, self.width = self.first // 2, 2 * self.width
        mean, most, count = (np.pad(part[:n], (pairs, (0, 0), (0, 0))).reshape(-1, 2, *part.shape[1:]) for part in self.cells.parts)
        total, there = count.sum(1, dtype=np.uint32), count > 0
        with np.errstate(all="ignore"):
            share = count / np.maximum(total, 1)[:, None]
            means = np.where(there, mean * share, 0.0).sum(1).astype(np.float32)
            highest = np.where(there, most, -np.inf).max(1).astype(np.float32)
        self.cells = Cells(means, np.where(total > 0, highest, np.float32(0)), total)


def grid_of_logs(folder: Path, wanted: Iterable[str] = METRICS) -> Grid:
    """The grid of what the ranks' logs below a run's `metrics` still hold: for a run that no monitor kept one of."""
    names = tuple(wanted)
    grid, gather = Grid(names), Gather(folder, wanted=names.__contains__)
    for merged in gather.rest():
        grid.add(merged, gather.merger.generations[merged.generation])
    return grid
