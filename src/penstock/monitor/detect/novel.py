"""Which metrics behave as never before: the detector of each metric by itself (`univariate.py`), as evidence for what others find.

It sees what an expectation does not: a slow departure, or a level at a time where another one was usual. Alone it raises no alert, as among hundreds
of metrics one is always new. Cost: that of `Univariate`, and three arrays of metrics. When not to use it: to say when a fault began to the step,
which deviations from an expectation tell more sharply; they come first in the evidence.
"""

from __future__ import annotations

import numpy as np

from penstock.monitor.detect.baseline import Against
from penstock.monitor.detect.finding import Moved
from penstock.monitor.detect.univariate import Univariate
from penstock.monitor.series.table import StepTable

#: Steps for which a metric that was new is evidence.
REMEMBER = 20


class Novel:
    """Follows all metrics; `update` at each step, `moved` when something was found."""

    def __init__(self) -> None:
        self._each = Univariate()
        self._step_m = np.zeros(0, dtype=np.int64)
        #: Value and expectation at the step where a metric was new, and how many deviations lay between.
        self._then_3m = np.zeros((3, 0))

    def update(self, step: int, values_m: np.ndarray, against: Against) -> None:
        """Take a step's means over ranks in, [metrics], with what was expected of them."""
        more = len(values_m) - len(self._step_m)
        if more > 0:
            self._each.grow(len(values_m))
            self._step_m, self._then_3m = np.pad(self._step_m, (0, more)), np.pad(self._then_3m, ((0, 0), (0, more)))
        new = np.flatnonzero(self._each.alarms(self._each.update(values_m)))
        if len(new):
            self._step_m[new] = step
            deviations_n = against.residual_m[new] / np.maximum(against.scale_m[new], 1e-300)
            self._then_3m[:, new] = values_m[new], against.expected_m[new], deviations_n

    def moved(self, table: StepTable) -> list[Moved]:
        """The metrics that were new in the last steps, those first that were so first, then by how far they were off."""
        lately = np.flatnonzero((self._step_m > table.step - REMEMBER) & (self._step_m <= table.step) & np.isfinite(self._then_3m).all(axis=0))
        order = sorted(lately, key=lambda i: (self._step_m[i], -abs(self._then_3m[2, i])))
        return [Moved(table.names.all[i], int(self._step_m[i]), *self._then_3m[:, i].tolist()) for i in order if self._step_m[i]]
