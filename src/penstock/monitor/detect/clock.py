"""Clock skew: a rank's clock moved against those of the others.

Ranks end a step together (they wait for each other in it), so their unix times at its end, `time/at`, differ by what their clocks do and by some
milliseconds. A rank further than a second from the median of the others, in three of four steps, has a clock that was set or runs away. Cost: one
number for each rank. When not to use it: within one host, whose ranks share a clock.
"""

from __future__ import annotations

import numpy as np

from penstock.monitor.detect.episodes import Episodes, Streak
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent, apart, number
from penstock.monitor.series.table import StepTable

#: Seconds that clocks may differ.
SECONDS = 1.0


class ClockSkew(Silent):
    """Finds `clock_skew` with its rank; told once until the clock is right for a hundred steps."""

    def __init__(self) -> None:
        self._skewed: dict[int, Streak] = {}
        self._episodes = Episodes(quiet=100)

    def update(self, table: StepTable) -> list[Finding]:
        """A finding for the rank that is furthest off."""
        at_r = table.of("time/at")
        if not np.fmax.reduce(at_r) - np.fmin.reduce(at_r) > SECONDS:
            return []
        apart_r = apart(at_r)
        off_r = number(np.abs(apart_r))
        worst = int(off_r.argmax())
        streak = self._skewed.setdefault(table.ranks[worst], Streak(4))
        if streak.add(table.step, off_r[worst] > SECONDS) < 3 or not self._episodes.begins(table.ranks[worst], table.step):
            return []
        seconds, rank = float(apart_r[worst]), table.ranks[worst]
        moved = Moved("time/at", streak.since, seconds, 0.0, seconds / SECONDS, rank)
        text = f"the clock of rank {rank} is {seconds:+.3g} s from those of the others since step {streak.since}"
        sure = 0.9 if len(table.ranks) > 2 else 0.6  # of two nobody knows which is wrong
        return [Finding("clock_skew", table.step, streak.since, sure, rank, None, (moved,), text)]
