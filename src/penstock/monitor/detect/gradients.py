"""Gradients explode or vanish: against their own usual size, on the logarithm, with the layer that moved most.

Exploding: eight robust deviations and 1.6 times the largest recent residual above the expectation of log(norm), and at least four times it, in two of
three steps; a single step that recovers is an outlier, as clipping is for. Vanishing: below a thousandth of what was usual over hundreds of steps, or
exactly zero, for five steps; the slow reference is an exponential mean of the logarithm, so a decline by schedule (some tens over a whole run) is
none. Cost: a value a layer in the shared baseline. When not to use it: for a norm after clipping.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.monitor.detect.episodes import Episodes, Streak
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Columns, Silent, layer_of
from penstock.monitor.series.table import StepTable

#: An explosion in deviations, in extremes, and as a factor; steps to learn before.
DEVIATIONS, EXTREMES, FACTOR, LEARN = 8.0, 1.6, 4.0, 30

#: What share of the usual norm is vanishing, and for how many steps.
VANISHED, FOR_STEPS = 1e-3, 5

_ZERO = 1e-30


class Gradients(Silent):
    """Finds `gradient_explosion` and `gradient_vanishing` of `grad_norm/total`; each told once until fifty steps are without."""

    def __init__(self, expected: Expected) -> None:
        self._columns, self._norms = Columns("grad_norm/total", "grad_norm/layer.*"), expected.part(self._logs, lasts=True)
        self._high, self._low, self._episodes = Streak(3), Streak(FOR_STEPS), Episodes(quiet=50)
        self._usual, self._seen = 0.0, 0

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding."""
        columns, column = self._columns.of(table.names, table.values_rm.shape[1]), table.names.find("grad_norm/total")
        total = int(columns.searchsorted(len(table.names) if column is None else column))
        if total == len(columns) or not math.isfinite(log := float(self._norms.values_m[total])):
            return []
        return self._exploding(table, total) or self._vanishing(table, total, log)

    def _logs(self, table: StepTable) -> np.ndarray:
        """Log of each part's norm, NaN where nobody measured one; its owner may be any rank, and those without it measured nothing."""
        columns = self._columns.of(table.names, table.values_rm.shape[1])
        norms_m = np.where(table.finite_rm[:, columns], table.values_rm[:, columns], -1.0).max(axis=0, initial=-1.0)
        logs_m = np.log(np.maximum(norms_m, _ZERO))
        logs_m[norms_m < 0] = np.nan
        return logs_m

    def _exploding(self, table: StepTable, total: int) -> list[Finding]:
        against = self._norms.against
        rise = float(against.residual_m[total])
        high = rise > math.log(FACTOR) and against.beyond(DEVIATIONS, EXTREMES)[total] > 1.0
        # The second step of an explosion stands below the extreme that its first one set.
        again = bool(self._high.add(table.step, False)) and rise > math.log(FACTOR)
        if against.seen_m[total] < LEARN or not (high or again):
            return []
        steps = self._high.add(table.step, True)
        if steps < 2 or not self._episodes.begins("explosion", table.step):
            return []
        text = f"gradient norm is {math.exp(min(rise, 60)):.3g} times what was expected at step {table.step}"
        return [self._finding("gradient_explosion", table, total, self._high.since, text)]

    def _vanishing(self, table: StepTable, total: int, log: float) -> list[Finding]:
        low = log < self._usual + math.log(VANISHED) or (log <= math.log(_ZERO) and self._seen > 0)
        if not low:
            self._seen += 1
            self._usual += max(1 / self._seen, 0.005) * (log - self._usual)
        if self._low.add(table.step, low) < FOR_STEPS or self._seen < LEARN or not self._episodes.begins("vanishing", table.step):
            return []
        text = f"gradient norm is {math.exp(log):.3g} since step {self._low.since}, where {math.exp(self._usual):.3g} was usual"
        return [self._finding("gradient_vanishing", table, total, self._low.since, text)]

    def _finding(self, kind: str, table: StepTable, total: int, since: int, text: str) -> Finding:
        """With the total first and the layers that moved most after it; the layer is told where one stands out from the others."""
        names, against = [table.names.all[column] for column in self._columns.of(table.names, table.values_rm.shape[1])], self._norms.against
        order = sorted((i for i in range(len(names)) if i != total), key=lambda i: -abs(against.residual_m[i]))[:4]
        values, expected = (np.exp(np.minimum(logs, 700.0)) for logs in (against.expected_m + against.residual_m, against.expected_m))
        moved = tuple(Moved(names[i], since, float(values[i]), float(expected[i]), float(against.deviations_m[i])) for i in [total, *order])
        size = np.abs(against.residual_m)
        stands_out = len(order) > 1 and size[order[0]] > max(2 * size[order[1]], 0.5 * size[total])
        layer = layer_of(names[order[0]]) if stands_out else None
        return Finding(kind, table.step, since, 0.9, None, layer, moved, text)
