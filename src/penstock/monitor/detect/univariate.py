"""How new the behaviour of each metric is: one streaming detector for all columns at once, learned from the run itself.

A metric is seen as three numbers: its value and its exponential means with half-lives of 16 and 128 steps. Novelty is how far these lie from all of
up to `PLACES` places where they were before, as a share of the metric's whole range so far; the present value counts as much as both means. A place
is kept when it is further than `VIGILANCE` from all others, and the one longest unvisited makes room (online leader clustering, Hartigan 1975; the
same idea as in adaptive resonance, Carpenter and Grossberg 1987). So a spike, a new level, a slow departure and a level at a time where another one
was usual are new, while heavy tails, spikes that recur and periods become places that were seen.

What is an alarm adapts to each metric: novelty of `ALARM`, times 1 + what its alarms of late have added (`RAISE` each, of which half is forgotten in
`RELAX` steps), times 1 + `YOUNG` / steps seen, as to a metric that was hardly seen yet all is new; and none within `QUIET` steps of another.

How the constants were chosen, and what the detector scores on the Numenta benchmark: `benchmarks/numenta.py`. A trend is new for ever: what a named
detector follows has its own expectation (`baseline.py`), and novelty alone raises no alert in training. A standstill at a usual level, and noise that
grows or shrinks around one, are not seen; as further numbers they cost more on the benchmark than they brought. Cost: O(columns x places x 3), single
precision; see `benchmarks/detect_cost.py`. When not to use it: to tell somebody at night; it is evidence.
"""

from __future__ import annotations

import numpy as np

#: Half-lives in steps of the means beside the present value, and what the three weigh.
HALVES = np.array([16.0, 128.0])
WEIGHTS = np.array([0.5, 0.25, 0.25])

#: Places kept, and how far apart they are.
PLACES, VIGILANCE = 64, 0.05

#: Novelty that is an alarm, as a share of it what an alarm adds, and in how many steps half of that is forgotten; steps seen by which it is double.
ALARM, RAISE, RELAX, YOUNG = 0.04, 0.4, 1000.0, 300.0

#: Steps without another alarm, steps to learn before.
QUIET, LEARN = 100, 100

#: The largest number that single precision is trusted with, and where a place lies that is none yet.
LARGEST, NOWHERE = 1e30, 1e35


class Univariate:
    """Novelty of `n` columns; `update` at each step, `grow` when columns are added."""

    def __init__(self, n: int = 0) -> None:
        s = len(WEIGHTS)
        self.seen_m = np.zeros(n, dtype=np.int64)
        self._quiet_m, self._raised_m = np.zeros(n, dtype=np.int64), np.zeros(n)
        # All as differences from a column's first value: a single-precision number is exact enough for those, as the range is not much smaller.
        self._first_m, self._mean_sm = np.zeros(n), np.zeros((s, n))
        self._widest_sm, self._least_sm = np.zeros((s, n)), np.zeros((s, n))
        self._place_smp = np.full((s, n, PLACES), NOWHERE, dtype=np.float32)
        self._visited_mp = np.full((n, PLACES), -1, dtype=np.int64)

    def grow(self, n: int) -> None:
        """Make room for `n` columns in all."""
        if n <= len(self.seen_m):
            return
        more = Univariate(n - len(self.seen_m))
        for name, value in vars(self).items():
            axis = 1 if name.endswith(("_sm", "_smp")) else 0
            setattr(self, name, np.concatenate([value, getattr(more, name)], axis=axis))

    def update(self, values_m: np.ndarray) -> np.ndarray:
        """Novelty of each column at this step, [columns]; 0 while it learns, and where the value is not finite (which leaves its state as it was)."""
        here_m = np.isfinite(values_m)
        self._take_in(values_m, here_m)
        apart_m = self._apart(here_m)
        return np.where(here_m & (self.seen_m > LEARN), apart_m, 0.0)

    def alarms(self, novelty_m: np.ndarray) -> np.ndarray:
        """Columns that raise an alarm now, once a step: as novel as that takes by now, and not in the quiet after another; bool."""
        self._raised_m *= 0.5 ** (1 / RELAX)
        level_m = ALARM * (1 + self._raised_m) * (1 + YOUNG / np.maximum(self.seen_m, 1))
        alarm_m = (novelty_m >= level_m) & (self.seen_m > self._quiet_m)
        self._quiet_m[alarm_m] = self.seen_m[alarm_m] + QUIET
        self._raised_m[alarm_m] += RAISE
        return alarm_m

    def _take_in(self, values_m: np.ndarray, here_m: np.ndarray) -> None:
        """Move the means and widen the ranges of the columns that have a value."""
        new_m = here_m & (self.seen_m == 0)
        self._first_m[new_m] = values_m[new_m]
        self.seen_m += here_m
        mean_sm = self._mean_sm
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(mean_sm[0], np.clip(values_m - self._first_m, -LARGEST, LARGEST), where=here_m)
        young_m = here_m / np.maximum(self.seen_m, 1)
        for s, half in enumerate(HALVES, 1):
            mean_sm[s] += np.maximum((1 - 0.5 ** (1 / half)) * here_m, young_m) * (mean_sm[0] - mean_sm[s])
        np.maximum(self._widest_sm, mean_sm, out=self._widest_sm)
        np.minimum(self._least_sm, mean_sm, out=self._least_sm)

    def _apart(self, here_m: np.ndarray) -> np.ndarray:
        """Distance of each column to its nearest place as a share of its range, at most 10; a far one becomes a place."""
        rounding_m = 1e-9 * np.abs(self._mean_sm[0] + self._first_m) + 1 / LARGEST
        weight_sm = (WEIGHTS[:, None] / np.maximum(self._widest_sm - self._least_sm, rounding_m)).astype(np.float32)
        mean_sm = self._mean_sm.astype(np.float32)
        distance_mp = np.zeros(self._visited_mp.shape, dtype=np.float32)
        part_mp = np.empty_like(distance_mp)
        with np.errstate(over="ignore"):
            for place_mp, mean_m, weight_m in zip(self._place_smp, mean_sm, weight_sm):
                np.subtract(place_mp, mean_m[:, None], out=part_mp)
                np.abs(part_mp, out=part_mp)
                part_mp *= weight_m[:, None]
                distance_mp += part_mp
        nearest_m = distance_mp.argmin(axis=1)
        apart_m = distance_mp[np.arange(len(nearest_m)), nearest_m]
        far = np.flatnonzero(here_m & (apart_m > VIGILANCE))
        nearest_m[far] = self._visited_mp[far].argmin(axis=1)
        self._place_smp[:, far, nearest_m[far]] = mean_sm[:, far]
        here = np.flatnonzero(here_m)
        self._visited_mp[here, nearest_m[here]] = self.seen_m[here]
        return np.minimum(apart_m, 10.0)
