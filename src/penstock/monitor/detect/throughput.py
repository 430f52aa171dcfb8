"""Throughput drops: the typical rank's step takes longer than usual, and stays so.

The median over ranks of `time/step` on the logarithm; a step counts when it is a quarter longer than expected and three deviations above; eighteen of
twenty over ten seconds make a finding, so that slow steps (evaluation, a snapshot that is written beside training, a page from disk) do not. Cost:
one value in the shared baseline. When not to use it: for one slow rank (`straggler.py`), which slows all of them too: alerts put both together.
"""

from __future__ import annotations

import math

from penstock.monitor.detect.episodes import Streak
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent
from penstock.monitor.series.table import StepTable

#: By how much longer, in how many deviations (and in how many after the first such step), in how many of how many steps; steps to learn before.
LONGER, DEVIATIONS, AGAIN, STEPS, OF, LEARN = 1.25, 3.0, 1.5, 18, 20, 40

#: Seconds that it must last: a snapshot is written beside training for some.
SECONDS = 10.0


class Throughput(Silent):
    """Finds `throughput_drop`; after one the new speed is what is expected."""

    def __init__(self, expected: Expected) -> None:
        self._step, self._slow = expected.typical("time/step", log=True), Streak(OF)
        self._began, self._time = 0, 0.0
        self._before = self._noise = self._deviations = 0.0

    def renew(self) -> None:
        """Forget slow steps of other work."""
        self._slow.clear()

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding."""
        log, against = float(self._step.values_m[0]), self._step.against
        if not math.isfinite(log):
            return []
        longer, deviations = float(against.residual_m[0]), float(against.deviations_m[0])
        slow = longer > math.log(LONGER) and deviations > DEVIATIONS and against.seen_m[0] >= LEARN
        steps = self._slow.add(table.step, False)
        if slow and not steps:
            self._began, self._time, self._deviations = table.step, table.time, deviations
            self._before, self._noise = float(against.expected_m[0]), float(against.scale_m[0])
        # Once slow, the expectation creeps upwards: what stays as far above where it began still counts.
        slow = slow or (bool(steps) and log > self._before + max(math.log(LONGER), AGAIN * self._noise))
        if not slow and steps < STEPS // 2:
            self._slow.clear()
        if self._slow.add(table.step, slow) < STEPS or table.time - self._time < SECONDS:
            return []
        return [self._finding(table.step, math.exp(log), math.exp(self._before))]

    def _finding(self, step: int, seconds: float, before: float) -> Finding:
        self._slow.clear()
        self._step.forget()
        moved = Moved("time/step", self._began, seconds, before, self._deviations)
        text = f"a step takes {seconds:.3g} s since step {self._began} where {before:.3g} s was usual"
        return Finding("throughput_drop", step, self._began, 0.9, None, None, (moved,), text)
