"""Throughput drops: the typical rank's step takes longer than usual, and stays so.

The median over ranks of `time/step` on the logarithm; a step counts when it is a quarter longer than expected and three deviations above; seven of
eight make a finding, so that single slow steps (evaluation, snapshots, a page from disk) do not. Cost: one value in the shared baseline. When not to
use it: for one slow rank (`straggler.py`), which slows all of them too: alerts put both together.
"""

from __future__ import annotations

import math

from penstock.monitor.detect.episodes import Streak
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent
from penstock.monitor.series.table import StepTable

#: By how much longer, in how many deviations, in how many of how many steps; steps to learn before.
LONGER, DEVIATIONS, STEPS, OF, LEARN = 1.25, 3.0, 7, 8, 40


class Throughput(Silent):
    """Finds `throughput_drop`; after one the new speed is what is expected."""

    def __init__(self, expected: Expected) -> None:
        self._step, self._slow = expected.typical("time/step", log=True), Streak(OF)
        self._before = self._deviations = 0.0

    def renew(self) -> None:
        """Forget slow steps of other work."""
        self._slow.clear()

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding."""
        log, against = float(self._step.values_m[0]), self._step.against
        if not math.isfinite(log):
            return []
        seconds = math.exp(log)
        longer, deviations = float(against.residual_m[0]), float(against.deviations_m[0])
        slow = longer > math.log(LONGER) and deviations > DEVIATIONS and against.seen_m[0] >= LEARN
        # Once slow, the expectation creeps upwards: what stays a quarter above where it began still counts.
        if self._slow.add(table.step, slow) == 1 and slow:
            self._before, self._deviations = math.exp(against.expected_m[0]), deviations
        elif self._slow.add(table.step, False) and seconds > LONGER * self._before:
            slow = True
        if self._slow.add(table.step, slow) < STEPS:
            return []
        since, before = self._slow.since, self._before
        self._slow.clear()
        self._step.forget()
        moved = Moved("time/step", since, seconds, before, self._deviations)
        text = f"a step takes {seconds:.3g} s since step {since} where {before:.3g} s was usual"
        return [Finding("throughput_drop", table.step, since, 0.9, None, None, (moved,), text)]
