"""A memory leak: a rank's memory grows steadily, by more than reading the data explains.

The least of every eight steps (a leak raises the floor, work only the peaks); ten such floors that rise in at least eight of nine places, by a
hundredth in all, and in their later half by at least six tenths of what the earlier half grew (caches that fill slow down). Files mapped to memory
count as resident when they are read: eight bytes for each token read are allowed. Cost: ten numbers for each rank and kind of memory. When not to
use it: in the first hundred steps, where allocators and compilers fill their pools.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from penstock.monitor.detect.episodes import Episodes
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent
from penstock.monitor.series.table import StepTable

#: Steps of a floor, floors that are looked at, steps left out at the beginning, growth as a share, bytes allowed for each token read.
BLOCK, FLOORS, LEARN, GROWTH, BYTES_A_TOKEN = 8, 10, 40, 0.01, 8.0

KINDS = ("memory/allocated", "memory/resident")


class Leak(Silent):
    """Finds `memory_leak` with its rank; told once until it stops for two hundred steps."""

    def __init__(self) -> None:
        self._floors: dict[tuple[str, int], deque[float]] = {}
        self._lowest: dict[tuple[str, int], float] = {}
        self._read: dict[int, float] = {}
        self._seen, self._episodes = 0, Episodes(quiet=200)

    def update(self, table: StepTable) -> list[Finding]:
        """A finding for every rank whose memory leaks."""
        self._seen += 1
        if self._seen <= LEARN:
            return []
        ended, found = self._seen % BLOCK == 0, []
        tokens_r = np.nan_to_num(table.of("data/tokens_read"))
        self._read = {rank: self._read.get(rank, 0.0) + float(tokens) for rank, tokens in zip(table.ranks, tokens_r)}
        for name in KINDS:
            allowed = BYTES_A_TOKEN if name == "memory/resident" else 0.0
            for rank, value in zip(table.ranks, table.of(name)):
                key = (name, rank)
                if np.isfinite(value):
                    self._lowest[key] = min(self._lowest.get(key, np.inf), float(value) - allowed * self._read[rank])
                if ended and key in self._lowest:
                    floors = self._floors.setdefault(key, deque(maxlen=FLOORS))
                    floors.append(self._lowest.pop(key))
                    if leaks(np.array(floors), float(value)) and self._episodes.begins(rank, table.step):
                        found.append(self._finding(table, name, rank, float(value), floors))
        return found

    @staticmethod
    def _finding(table: StepTable, name: str, rank: int, value: float, floors: deque[float]) -> Finding:
        steps = BLOCK * (FLOORS - 1)
        grown = floors[-1] - floors[0]
        rises = np.diff(np.array(floors))
        moved = Moved(name, table.step - steps, value, value - grown, float(rises.mean() / (rises.std() + 1e-9)), rank)
        text = f"{name} of rank {rank} grew by {grown / 2**20:.1f} MiB in {steps} steps and grows by {grown / steps / 2**10:.0f} KiB a step"
        return Finding("memory_leak", table.step, table.step - steps, 0.8, rank, None, (moved,), text)


def leaks(floors: np.ndarray, value: float) -> bool:
    """Whether floors of memory (bytes, oldest first) rise as a leak's do, beside the whole of it."""
    if len(floors) < FLOORS:
        return False
    rises = np.diff(floors)
    middle = FLOORS // 2
    earlier, later = floors[middle] - floors[0], floors[-1] - floors[middle - 1]
    return bool((rises > 0).sum() >= FLOORS - 2 and floors[-1] - floors[0] > GROWTH * value and later > 0.6 * earlier)
