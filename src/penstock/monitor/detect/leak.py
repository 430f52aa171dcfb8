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
from penstock.monitor.detect.reading import Silent, number
from penstock.monitor.series.table import StepTable

#: Steps of a floor, floors that are looked at, steps left out at the beginning, growth as a share, bytes allowed for each token read.
BLOCK, FLOORS, LEARN, GROWTH, BYTES_A_TOKEN = 8, 10, 40, 0.01, 8.0

KINDS = ("memory/allocated", "memory/resident")

#: Bytes of each kind that a token read may add.
ALLOWED_K = np.array([[0.0], [BYTES_A_TOKEN]])


class Leak(Silent):
    """Finds `memory_leak` with its rank; told once until it stops for two hundred steps."""

    def __init__(self) -> None:
        self._ranks: tuple[int, ...] = ()
        self._seen, self._episodes = 0, Episodes(quiet=200)
        self._begin(())

    def _begin(self, ranks: tuple[int, ...]) -> None:
        """Ranks that are others begin anew."""
        self._ranks = ranks
        self._lowest_kr = np.full((len(KINDS), len(ranks)), np.inf)
        self._read_r = np.zeros(len(ranks))
        self._floors_kr: deque[np.ndarray] = deque(maxlen=FLOORS)

    def update(self, table: StepTable) -> list[Finding]:
        """A finding for every rank whose memory leaks."""
        self._seen += 1
        if table.ranks != self._ranks:
            self._begin(table.ranks)
        if self._seen <= LEARN:
            return []
        self._read_r += number(table.of("data/tokens_read"))
        values_kr = np.stack([table.of(name) for name in KINDS])
        self._lowest_kr = np.fmin(self._lowest_kr, values_kr - ALLOWED_K * self._read_r)
        if self._seen % BLOCK:
            return []
        self._floors_kr.append(self._lowest_kr)
        self._lowest_kr = np.full_like(self._lowest_kr, np.inf)
        found, floors_fkr = [], np.stack(self._floors_kr)
        for k, r in np.ndindex(values_kr.shape):
            floors = floors_fkr[:, k, r]
            if np.isfinite(floors).all() and leaks(floors, float(values_kr[k, r])) and self._episodes.begins(table.ranks[r], table.step):
                found.append(self._finding(table, KINDS[k], table.ranks[r], float(values_kr[k, r]), floors))
        return found

    @staticmethod
    def _finding(table: StepTable, name: str, rank: int, value: float, floors: np.ndarray) -> Finding:
        steps = BLOCK * (FLOORS - 1)
        grown = float(floors[-1] - floors[0])
        rises = np.diff(floors)
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
