"""The whole vector of metrics at once: how many of them left their expectation together, and which did first.

Each metric's mean over ranks is held against its `Baseline`; one that is six deviations and 1.2 times its extreme off, or was so in the step before
and still deviates, is far off. Metrics are correlated, so how many are far off at once by chance is not known beforehand: their share has a baseline
of its own. The vector is unusual when a tenth of all and twice the largest share of late are far off, in two of three steps. (A covariance of
hundreds of metrics from some hundred steps would be singular, and one huge metric would hide the others.) Cost: O(metrics), some fifty numpy
operations. When not to use it: for a fault that shows in a few metrics, as most do.
"""

from __future__ import annotations

import numpy as np

from penstock.monitor.detect.baseline import Against, Baseline
from penstock.monitor.detect.episodes import Episodes, Streak
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent, layer_of
from penstock.monitor.series.table import StepTable

#: What the share must exceed in its own deviations and extremes, and at least; by how much a metric must deviate; steps to learn before.
DEVIATIONS, EXTREMES, SHARE, FAR, LEARN = 10.0, 2.0, 0.1, 6.0, 60

#: Metrics that must be far off at least: the norms of a few layers move together.
LEAST = 8

#: Steps after which a metric that came back is forgotten as evidence.
REMEMBER = 10


class Multivariate(Silent):
    """Finds `unusual_step`, and remembers what moved first for the evidence of others."""

    def __init__(self, expected: Expected) -> None:
        self._metrics, self._whole = expected.part(mean_over_ranks), Baseline()
        self._streak, self._episodes = Streak(3), Episodes(quiet=30)
        self._since_m = np.zeros(0, dtype=np.int64)
        self._last_m = np.zeros(0, dtype=np.int64)
        self._peak_m = np.zeros(0)
        self._value_m = np.zeros((2, 0))

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding."""
        values_m, against = self.values_m, self._metrics.against
        known_m = np.isfinite(values_m) & (against.seen_m >= LEARN)
        far_m = self._remember(table.step, values_m, against, known_m)
        if known_m.sum() < 10:
            return []
        share = float(far_m.sum() / known_m.sum())
        whole = self._whole.update(np.array([share]))
        unusual = whole.beyond(DEVIATIONS, EXTREMES)[0] > 1 and whole.seen_m[0] >= LEARN
        # The second step stands below the extreme that the first one set.
        unusual = share > SHARE and far_m.sum() >= LEAST and (unusual or self._streak.add(table.step, False) > 0)
        if self._streak.add(table.step, bool(unusual)) < 2 or not self._episodes.begins("", table.step):
            return []
        moved = self.moved(table)
        text = f"{far_m.sum()} of {known_m.sum()} metrics left their expectation at step {table.step}, first {moved[0].name if moved else '?'}"
        layers = {layer_of(one.name) for one in moved[:3]}
        return [Finding("unusual_step", table.step, self._streak.since, 0.5, None, layers.pop() if len(layers) == 1 else None, moved, text)]

    @property
    def values_m(self) -> np.ndarray:
        """The step's means over ranks, [metrics]."""
        return self._metrics.values_m

    def moved(self, table: StepTable, most: int = 8) -> tuple[Moved, ...]:
        """The metrics that deviate or did lately, by the step at which they began, then by how far."""
        lately = np.flatnonzero(self._since_m > 0)
        order = sorted(lately, key=lambda i: (self._since_m[i], -abs(self._peak_m[i])))[:most]
        value_m, expected_m = self._value_m
        return tuple(
            Moved(table.names.all[i], int(self._since_m[i]), float(value_m[i]), float(expected_m[i]), float(self._peak_m[i]), _rank(table, int(i)))
            for i in order
        )

    def _remember(self, step: int, values_m: np.ndarray, against: Against, known_m: np.ndarray) -> np.ndarray:
        """Which metrics deviate now (mask); keeps since when, and the value where each was furthest off."""
        more = len(values_m) - len(self._since_m)
        if more > 0:
            self._since_m, self._last_m = np.pad(self._since_m, (0, more)), np.pad(self._last_m, (0, more))
            self._peak_m = np.pad(self._peak_m, (0, more))
            self._value_m = np.pad(self._value_m, ((0, 0), (0, more)))
        deviate_m = np.abs(against.residual_m) > FAR * against.scale_m
        again_m = (self._since_m > 0) & (step - self._last_m <= 2)
        far_m = known_m & deviate_m & (again_m | (np.abs(against.residual_m) > 1.2 * against.extreme_m))
        self._since_m[step - self._last_m > REMEMBER] = 0
        self._last_m[far_m] = step
        fresh_m = far_m & (self._since_m == 0)
        self._since_m[fresh_m] = step
        if far_m.any():
            peak_m = far_m & (fresh_m | (np.abs(against.deviations_m) > np.abs(self._peak_m)))
            self._peak_m[peak_m] = against.deviations_m[peak_m]
            self._value_m[:, peak_m] = np.stack([values_m, against.expected_m])[:, peak_m]
        return far_m


def mean_over_ranks(table: StepTable) -> np.ndarray:
    """Each metric's mean over the ranks whose value is finite, NaN where none is; [metrics]."""
    finite_rm = np.isfinite(table.values_rm)
    count_m = finite_rm.sum(axis=0)
    total_m = np.where(finite_rm, table.values_rm, 0.0).sum(axis=0)
    return np.where(count_m > 0, total_m / np.maximum(count_m, 1), np.nan)


def _rank(table: StepTable, column: int) -> int | None:
    """The rank that stands out in a metric: ten times as far from the median as the next."""
    values_r = table.values_rm[:, column]
    if len(values_r) < 3 or not np.isfinite(values_r).all():
        return None
    apart_r = np.abs(values_r - np.median(values_r))
    order = np.argsort(apart_r)
    return table.ranks[order[-1]] if apart_r[order[-1]] > 10 * apart_r[order[-2]] and apart_r[order[-1]] > 0 else None
