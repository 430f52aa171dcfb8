"""The whole vector of metrics at once: how many of them left their expectation together, and which did first.

Each metric's mean over ranks is held against its `Baseline`; one that is six deviations and 1.2 times its extreme off, or was so in the step before
and still deviates, is far off. Metrics are correlated, so how many are far off at once by chance is not known beforehand: their share has a baseline
of its own. The vector is unusual when a tenth of all and twice the largest share of late are far off, in two of three steps. (A covariance of
hundreds of metrics from some hundred steps would be singular, and one huge metric would hide the others.) Cost: O(metrics), some fifty numpy
operations. When not to use it: for a fault that shows in a few metrics, as most do.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.monitor.detect.baseline import KEEP_S, LIMIT, SETTLED, WEIGHT_S, Against
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


class _Shares:
    """The shares of metrics that were far off so far: their mean, and the largest of late above it, as a `Baseline` keeps them (which takes far
    longer for a single number).
    """

    def __init__(self) -> None:
        self._seen, self._usual, self._spread, self._most = 0, 0.0, 0.0, 0.0

    def add(self, share: float) -> bool:
        """Take in a step's share; whether it lies beyond all that is usual."""
        above, scale = share - self._usual, 1.2533 * self._spread
        beyond = self._seen >= LEARN and above > max(DEVIATIONS * scale, EXTREMES * self._most)
        weight, limit = float(WEIGHT_S[min(self._seen + 1, SETTLED)]), LIMIT * scale if self._seen >= 10 else math.inf
        self._seen += 1
        self._usual += weight * max(min(above, limit), -limit)
        self._spread += weight * (min(abs(above), 2 * limit) - self._spread)
        self._most = max(self._most * float(KEEP_S[min(self._seen, SETTLED)]), above)
        return beyond


class Multivariate(Silent):
    """Finds `unusual_step`, and remembers what moved first for the evidence of others."""

    def __init__(self, expected: Expected) -> None:
        self._metrics, self._shares = expected.part(mean_over_ranks), _Shares()
        self._streak, self._episodes = Streak(3), Episodes(quiet=30)
        self._since_m = np.zeros(0, dtype=np.int64)
        self._last_m = np.zeros(0, dtype=np.int64)
        self._peak_m = np.zeros(0)
        self._value_m = np.zeros((2, 0))

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding."""
        values_m, against = self.values_m, self.against
        known_m = np.isfinite(values_m) & (against.seen_m >= LEARN)
        far_m = self._remember(table.step, values_m, against, known_m)
        far, known = int(np.count_nonzero(far_m)), int(np.count_nonzero(known_m))
        if known < 10:
            return []
        unusual = self._shares.add(far / known)
        # The second step stands below the extreme that the first one set.
        unusual = far > SHARE * known and far >= LEAST and (unusual or self._streak.add(table.step, False) > 0)
        if self._streak.add(table.step, unusual) < 2 or not self._episodes.begins("", table.step):
            return []
        moved = self.moved(table)
        text = f"{far} of {known} metrics left their expectation at step {table.step}, first {moved[0].name if moved else '?'}"
        layers = {layer_of(one.name) for one in moved[:3]}
        return [Finding("unusual_step", table.step, self._streak.since, 0.5, None, layers.pop() if len(layers) == 1 else None, moved, text)]

    @property
    def values_m(self) -> np.ndarray:
        """The step's means over ranks, [metrics]."""
        return self._metrics.values_m

    @property
    def against(self) -> Against:
        """What was expected of them, [metrics]."""
        return self._metrics.against

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
        residual_m, ago_m = np.abs(against.residual_m), step - self._last_m
        again_m = (self._since_m > 0) & (ago_m <= 2)
        far_m = known_m & (residual_m > FAR * against.scale_m) & (again_m | (residual_m > 1.2 * against.extreme_m))
        self._since_m[ago_m > REMEMBER] = 0
        far = np.flatnonzero(far_m)
        if len(far):
            self._last_m[far] = step
            fresh_f = self._since_m[far] == 0
            self._since_m[far[fresh_f]] = step
            deviations_f = against.residual_m[far] / against.scale_m[far]
            peak_f = fresh_f | (np.abs(deviations_f) > np.abs(self._peak_m[far]))
            peak = far[peak_f]
            self._peak_m[peak] = deviations_f[peak_f]
            self._value_m[:, peak] = values_m[peak], against.expected_m[peak]
        return far_m


def mean_over_ranks(table: StepTable) -> np.ndarray:
    """Each metric's mean over the ranks whose value is finite, NaN where none is; [metrics]."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean_m = table.values_rm.sum(axis=0) / max(1, len(table.ranks))
    part = np.flatnonzero(~np.isfinite(mean_m))
    if len(part):
        values_rp, finite_rp = table.values_rm[:, part], table.finite_rm[:, part]
        count_p = finite_rp.sum(axis=0)
        mean_m[part] = np.where(count_p > 0, np.where(finite_rp, values_rp, 0.0).sum(axis=0) / np.maximum(count_p, 1), np.nan)
    return mean_m


def _rank(table: StepTable, column: int) -> int | None:
    """The rank that stands out in a metric: ten times as far from the median as the next."""
    values_r = table.values_rm[:, column]
    if len(values_r) < 3 or not np.isfinite(values_r).all():
        return None
    apart_r = np.abs(values_r - np.median(values_r))
    order = np.argsort(apart_r)
    return table.ranks[order[-1]] if apart_r[order[-1]] > 10 * apart_r[order[-2]] and apart_r[order[-1]] > 0 else None
