"""A memory leak: a rank's memory grows steadily, by more than reading the data explains.

The least of every eight steps (a leak raises the floor, work only the peaks); ten such floors that rise evenly (seven of nine rises by a quarter of
the mean one, none by four tenths of all: an evaluation or a snapshot that takes some buffers is one rise), by a hundredth in all, and in their later
half by at least six tenths of what the earlier half grew (caches that fill slow down). Files mapped to memory count as resident when they are read:
eight bytes for each token read are allowed. Cost: ten numbers for each rank and kind of memory. When not to use it: in the first hundred steps, where
allocators and compilers fill their pools.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from penstock.monitor.detect.episodes import Episodes
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent, by_rank
from penstock.monitor.series.table import StepTable

#: Steps of a floor, floors that are looked at, steps left out at the beginning, growth as a share, bytes allowed for each token read.
BLOCK, FLOORS, LEARN, GROWTH, BYTES_A_TOKEN = 8, 10, 80, 0.01, 8.0

KINDS = ("memory/allocated", "memory/resident")


class Leak(Silent):
    """Finds `memory_leak` with its rank; told once until it stops for two hundred steps."""

    def __init__(self) -> None:
        self._episodes = Episodes(quiet=200)
        self.renew()

    def renew(self) -> None:
        """Begin anew: other work, or new processes, fill their pools."""
        self._seen = 0
        self._read_r = np.zeros(0)
        self._blocks = [_Block(kind) for kind in KINDS]

    def update(self, table: StepTable) -> list[Finding]:
        """A finding for every rank whose memory leaks."""
        self._seen += 1
        if self._seen <= LEARN:
            return []
        read_r = by_rank(table.ranks, table.of("data/tokens_read"))
        if len(read_r) > len(self._read_r):
            self._read_r = np.pad(self._read_r, (0, len(read_r) - len(self._read_r)))
        np.add(self._read_r[: len(read_r)], read_r, out=self._read_r[: len(read_r)], where=np.isfinite(read_r))
        found = []
        for block, allowed in zip(self._blocks, (0.0, BYTES_A_TOKEN)):
            values_r = by_rank(table.ranks, table.of(block.name))
            if not block.add(table.step, values_r - allowed * self._read_r[: len(values_r)], values_r):
                continue
            floors_fr, steps = np.stack([floor for _, floor in block.floors]), table.step - block.floors[0][0]
            for rank, value in enumerate(block.last_r.tolist()):
                if leaks(floors_fr[:, rank], value) and self._episodes.begins(rank, table.step):
                    found.append(self._finding(table.step, steps, block.name, rank, value, floors_fr[:, rank]))
        return found

    @staticmethod
    def _finding(step: int, steps: int, name: str, rank: int, value: float, floors: np.ndarray) -> Finding:
        grown, rises = float(floors[-1] - floors[0]), np.diff(floors)
        moved = Moved(name, step - steps, value, value - grown, float(rises.mean() / (rises.std() + 1e-9)), rank)
        text = f"{name} of rank {rank} grew by {grown / 2**20:.1f} MiB in {steps} steps and grows by {grown / steps / 2**10:.0f} KiB a step"
        return Finding("memory_leak", step, step - steps, 0.8, rank, None, (moved,), text)


class _Block:
    """Floors of one kind of memory: a floor is of at least `BLOCK` steps, and of as many as it takes until each rank has measured."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.floors: deque[tuple[int, np.ndarray]] = deque(maxlen=FLOORS)
        self.last_r = self._lowest_r = np.zeros(0)
        self._steps = 0

    def add(self, step: int, values_r: np.ndarray, raw_r: np.ndarray) -> bool:
        """Take in a step's values, and as they were measured; whether a floor has ended and there are enough."""
        if len(values_r) > len(self._lowest_r):  # other ranks than before
            self.floors.clear()
            self._lowest_r, self.last_r, self._steps = np.full(len(values_r), np.inf), np.full(len(values_r), np.nan), 0
        here = slice(len(values_r))
        self._lowest_r[here] = np.fmin(self._lowest_r[here], values_r)
        np.copyto(self.last_r[here], raw_r, where=np.isfinite(raw_r))
        self._steps += 1
        if self._steps < BLOCK or not np.isfinite(self._lowest_r).all():
            return False
        self.floors.append((step, self._lowest_r))
        self._lowest_r, self._steps = np.full(len(self._lowest_r), np.inf), 0
        return len(self.floors) == FLOORS


def leaks(floors: np.ndarray, value: float) -> bool:
    """Whether floors of memory (bytes, oldest first) rise as a leak's do, beside the whole of it."""
    rises = np.diff(floors)
    middle = FLOORS // 2
    earlier, later = floors[middle] - floors[0], floors[-1] - floors[middle - 1]
    even = (rises > 0.25 * rises.mean()).sum() >= FLOORS - 3 and rises.max() < 0.4 * rises.sum()
    return bool(even and floors[-1] - floors[0] > GROWTH * value and later > 0.6 * earlier)
