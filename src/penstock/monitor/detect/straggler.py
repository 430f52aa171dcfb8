"""A straggler: one rank whose own time (without its waiting for others) rose against that of the others, and stays so.

Of each rank: log of `time/own` over the median of the other ranks', against that rank's own history, so that ranks which differ by design (stages of
a pipeline, unlike devices) do not count. A step counts when the rank is fifteen hundredths and three deviations above it; six of seven make a
finding. A rank slow from the first step on is found where nothing else explains it (no pipeline): 1.4 times the others in twenty of the first thirty
steps. Cost: a value a rank in the shared baseline. When not to use it: with one rank.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.monitor.detect.episodes import Streak
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent, apart
from penstock.monitor.series.table import StepTable

#: By how much slower, in how many deviations, in how many of how many steps; steps to learn before.
SLOWER, DEVIATIONS, STEPS, OF, LEARN = 1.15, 3.0, 6, 7, 30

#: Slow from the start: by how much.
FROM_START = 1.4


class Straggler(Silent):
    """Finds `straggler` with its rank; after one that rank's new speed is what is expected."""

    def __init__(self, expected: Expected) -> None:
        self._apart = expected.part(_logs_apart, by_rank=True)
        self._ranks: tuple[int, ...] = ()
        self._slow: list[Streak] = []
        self._early: list[int] = []
        self._before: list[float] = []

    def update(self, table: StepTable) -> list[Finding]:
        """A finding for every rank that became slow."""
        if table.ranks != self._ranks:
            self._begin(table.ranks)
        own_r, apart_r, against = table.of("time/own"), self._apart.values_m, self._apart.against
        piped = bool(np.isfinite(table.of("pipeline/busy")).any())
        found = []
        for i, rank in enumerate(self._ranks):
            rise, seen = float(against.residual_m[i]), int(against.seen_m[i])
            slow = rise > math.log(SLOWER) and against.deviations_m[i] > DEVIATIONS and seen >= LEARN
            if slow and not self._slow[i].add(table.step, False):
                self._before[i] = float(against.expected_m[i])
            creeps = bool(self._slow[i].add(table.step, False)) and apart_r[i] > self._before[i] + math.log(SLOWER)
            self._early[i] += seen < LEARN and apart_r[i] > math.log(FROM_START) and not piped
            if self._slow[i].add(table.step, bool(slow or creeps)) >= STEPS:
                found.append(self._finding(table, rank, self._slow[i].since, float(apart_r[i]), self._before[i], float(own_r[i])))
                self._slow[i].clear()
                self._apart.forget_one(i)
            elif self._early[i] == 20 and seen < LEARN:
                self._early[i] += 1
                found.append(self._finding(table, rank, table.step - seen, float(apart_r[i]), 0.0, float(own_r[i])))
        return found

    def _begin(self, ranks: tuple[int, ...]) -> None:
        self._ranks = ranks
        self._slow = [Streak(OF) for _ in ranks]
        self._early, self._before = [0] * len(ranks), [0.0] * len(ranks)

    @staticmethod
    def _finding(table: StepTable, rank: int, since: int, apart_now: float, before: float, own: float) -> Finding:
        slower = math.exp(apart_now - before)
        moved = Moved("time/own", since, own, own / slower, (apart_now - before) / math.log(SLOWER), rank)
        text = f"rank {rank} takes {own:.3g} s of its own since step {since}, {slower:.2f} times what it took beside the others before"
        return Finding("straggler", table.step, since, 0.9, rank, None, (moved,), text)


def _logs_apart(table: StepTable) -> np.ndarray:
    """Log of each rank's own time above the median of the others', [ranks]."""
    own_r = table.of("time/own")
    return apart(np.log(np.where(own_r > 0, own_r, np.nan)))
