"""What a metric is expected to be at its next step, and how far from that it usually lies: one vectorised state for many metrics at once.

Level and trend are smoothed exponentially (Holt 1957), each residual limited to three robust deviations before it moves them, so that an outlier
does not become the norm while a lasting change does within some tens of steps. The scale is the smoothed absolute residual, limited likewise and
times 1.2533, which makes it the standard deviation of normal noise. Beside it stand the largest residual upwards and downwards of the last few
hundred steps (each forgets half in `EXTREME` steps): heavy-tailed noise, as times of steps have it, is known by its own extremes and not by its
scale. Cost: about twenty numpy operations a step on vectors as long as the metrics. When not to use it: for counters and for values that hold still
and then switch (epochs, numbers of samples).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Steps in which level and scale, the trend, and the extremes forget half.
LEVEL, TREND, EXTREME = 10.0, 30.0, 300.0

#: Robust deviations at which a residual is limited before it moves the expectation.
LIMIT = 3.0

#: Share of a value below which a difference is rounding.
ROUNDING = 1e-9

#: Values seen from which on weights stay as they are, and by values seen up to there: the weight of a value, and what an extreme keeps of itself.
#: The first weights are those of a plain mean, and early extremes, which are of learning to expect, are forgotten within a quarter of the steps seen.
SETTLED = int(4 * EXTREME)
WEIGHT_S = np.maximum(1 - 0.5 ** (1 / LEVEL), 1.0 / np.maximum(np.arange(SETTLED + 1), 1))
KEEP_S = np.exp2(-1 / np.clip(np.arange(SETTLED + 1) / 4.0, 5.0, EXTREME))


@dataclass(frozen=True)
class Against:
    """Values against what was expected of them, vectors [metrics]; `seen` counts values so far."""

    expected_m: np.ndarray
    residual_m: np.ndarray
    scale_m: np.ndarray
    extreme_m: np.ndarray
    seen_m: np.ndarray

    @property
    def deviations_m(self) -> np.ndarray:
        """Residuals in robust standard deviations."""
        return self.residual_m / self.scale_m

    def beyond(self, deviations: float, extremes: float) -> np.ndarray:
        """Residuals as shares of what is ordinary: the larger of so many deviations and so many times the extreme on that side; bool above 1."""
        return np.abs(self.residual_m) / np.maximum(deviations * self.scale_m, extremes * self.extreme_m)

    def of(self, where_m: slice | np.ndarray) -> Against:
        """The same of some metrics (slice or indices)."""
        return Against(*(vector_m[where_m] for vector_m in (self.expected_m, self.residual_m, self.scale_m, self.extreme_m, self.seen_m)))


class Baseline:
    """Expectation of `n` metrics; `update` with their values at each step, `grow` when metrics are added."""

    def __init__(self, n: int = 1) -> None:
        self._state_sm = np.zeros((5, n))
        self._seen_m = np.zeros(n, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._seen_m)

    def grow(self, n: int) -> None:
        """Make room for `n` metrics in all."""
        more = n - len(self)
        if more > 0:
            self._state_sm = np.pad(self._state_sm, ((0, 0), (0, more)))
            self._seen_m = np.pad(self._seen_m, (0, more))

    def forget(self, which_m: slice | np.ndarray) -> None:
        """Begin anew for some metrics (slice, mask or indices), as after a change that was told."""
        self._seen_m[which_m] = 0

    def update(self, values_m: np.ndarray) -> Against:
        """Values of a step against their expectation, which then takes them in; values that are not finite are left out (residual 0)."""
        finite_m = np.isfinite(values_m)
        new_m = finite_m & (self._seen_m == 0)
        if new_m.any():
            self._state_sm[:, new_m] = 0.0
            self._state_sm[0, new_m] = values_m[new_m]
        level_m, trend_m, spread_m, up_m, down_m = self._state_sm
        expected_m = level_m + trend_m
        residual_m = np.where(finite_m, values_m - expected_m, 0.0)
        floor_m = ROUNDING * np.abs(expected_m) + 1e-300
        scale_m = 1.2533 * spread_m + floor_m
        against = Against(expected_m, residual_m, scale_m, np.where(residual_m > 0, up_m, down_m), self._seen_m.copy())
        self._take_in(residual_m, finite_m, expected_m, scale_m)
        return against

    def _take_in(self, residual_m: np.ndarray, finite_m: np.ndarray, expected_m: np.ndarray, scale_m: np.ndarray) -> None:
        """Move the expectation; in the first steps weights are those of a plain mean and nothing is limited."""
        level_m, trend_m, spread_m, up_m, down_m = self._state_sm
        self._seen_m += finite_m
        young_m, settling_m = self._seen_m <= 10, np.minimum(self._seen_m, SETTLED)
        limit_m = LIMIT * scale_m
        limit_m[young_m] = np.inf
        moved_m = np.minimum(np.maximum(residual_m, -limit_m), limit_m)
        share_m = WEIGHT_S[settling_m] * finite_m
        moved_m *= share_m
        np.copyto(level_m, expected_m + moved_m, where=finite_m)
        moved_m[young_m] = 0.0
        moved_m *= 1 - 0.5 ** (1 / TREND)
        trend_m += moved_m
        # A residual beyond the limit widens the scale by more than it would at the limit, lest a lasting change be an outlier for ever.
        limit_m *= 2.0
        spread_m += share_m * (np.minimum(np.abs(residual_m), limit_m) - spread_m)
        keep_m = KEEP_S[settling_m]
        np.maximum(up_m * keep_m, residual_m, out=up_m)
        np.maximum(down_m * keep_m, -residual_m, out=down_m)
