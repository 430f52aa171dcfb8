"""A straggler: one rank whose own time (without its waiting for others) rose against that of the others, and stays so.

Of each rank: log of `time/own` over the median of the other ranks', against that rank's own history, so that ranks which differ by design (stages of
a pipeline, unlike devices) do not count. A step counts when the rank is fifteen hundredths and three deviations above it; eight of nine make a
finding, once they have lasted half a second: where steps take milliseconds, nine of them are a moment in which a host did something else. A rank
slow from the first step on is found where nothing else explains it (no pipeline): 1.4 times the others in twenty of the first thirty steps. Cost: a
value a rank in the shared baseline. When not to use it: with one rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from penstock.monitor.detect.episodes import Streak
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent, apart, by_rank
from penstock.monitor.series.table import StepTable

#: By how much slower, in how many deviations, in how many of how many steps; steps to learn before.
SLOWER, DEVIATIONS, STEPS, OF, LEARN = 1.15, 3.0, 8, 9, 30

#: Seconds that it must have lasted, and slow steps among the last of them with which it still does.
LASTS_S, STILL = 0.5, 6

#: Deviations that the steps after the first slow one must be above what was before it: the expectation follows them.
AGAIN = 1.5

#: Slow from the start: by how much, in how many steps.
FROM_START, EARLY = 1.4, 20


@dataclass
class _Pace:
    """A rank's slow steps of late, since which step and unix second they were enough, those of the first steps, and how it stood to the others, with
    what noise, before.
    """

    slow: Streak = field(default_factory=lambda: Streak(OF))
    enough: tuple[int, float] | None = None
    early: int = 0
    before: float = 0.0
    noise: float = 0.0

    def lasts(self, table: StepTable, slow: bool, own: float) -> int | None:
        """Count a step, which took the rank `own` seconds; since which step it is slow, if that is for long enough."""
        count = self.slow.add(table.step, slow)
        if count < (STILL if self.enough else STEPS):
            self.enough = None
        elif self.enough is None:
            since = self.slow.since
            self.enough = since, table.time - own * (table.step - since + 1)
        return self.enough[0] if self.enough and count >= STEPS and table.time - self.enough[1] >= LASTS_S else None


class Straggler(Silent):
    """Finds `straggler` with its rank; after one that rank's new speed is what is expected."""

    def __init__(self, expected: Expected) -> None:
        self._apart = expected.part(_logs_apart)
        self._ranks: dict[int, _Pace] = {}

    def renew(self) -> None:
        """Forget slow steps of other work."""
        self._ranks = {}

    def update(self, table: StepTable) -> list[Finding]:
        """A finding for every rank that became slow."""
        own_r, apart_r, against = table.of("time/own"), self._apart.values_m, self._apart.against
        slow_r = (against.residual_m > np.maximum(math.log(SLOWER), DEVIATIONS * against.scale_m)) & (against.seen_m >= LEARN)
        early_r = (against.seen_m < LEARN) & (apart_r > math.log(FROM_START))
        if early_r.any() and np.isfinite(table.of("pipeline/busy")).any():
            early_r[:] = False
        found = []
        # Ranks that are neither slow now nor were so lately have nothing to be counted.
        looked_at = {*np.flatnonzero(slow_r | early_r).tolist(), *(rank for rank, pace in self._ranks.items() if pace.slow.add(table.step, False))}
        for rank in sorted(looked_at.intersection(table.ranks)):
            row, pace = table.ranks.index(rank), self._ranks.setdefault(rank, _Pace())
            now, seen, slow = float(apart_r[rank]), int(against.seen_m[rank]), bool(slow_r[rank])
            if slow and not pace.slow.add(table.step, False):
                pace.before, pace.noise = float(against.expected_m[rank]), float(against.scale_m[rank])
            creeps = bool(pace.slow.add(table.step, False)) and now > pace.before + max(math.log(SLOWER), AGAIN * pace.noise)
            pace.early += bool(early_r[rank])
            if (since := pace.lasts(table, slow or creeps, float(own_r[row]))) is not None:
                found.append(self._finding(table, rank, since, now, pace.before, float(own_r[row])))
                pace.slow.clear()
                pace.enough, pace.early = None, EARLY + 1  # what is learned anew is no start
                self._apart.forget_one(rank)
            elif pace.early == EARLY and seen < LEARN:
                pace.early += 1
                found.append(self._finding(table, rank, table.step - seen, now, 0.0, float(own_r[row])))
        return found

    @staticmethod
    def _finding(table: StepTable, rank: int, since: int, apart_now: float, before: float, own: float) -> Finding:
        slower = math.exp(apart_now - before)
        moved = Moved("time/own", since, own, own / slower, (apart_now - before) / math.log(SLOWER), rank)
        text = f"rank {rank} takes {own:.3g} s of its own since step {since}, {slower:.2f} times what it took beside the others before"
        return Finding("straggler", table.step, since, 0.9, rank, None, (moved,), text)


def _logs_apart(table: StepTable) -> np.ndarray:
    """Log of each rank's own time above the median of the others', by rank."""
    own_r = table.of("time/own")
    return by_rank(table.ranks, apart(np.log(np.where(own_r > 0, own_r, np.nan))))
