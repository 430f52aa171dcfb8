"""How new the behaviour of each metric is: one streaming detector for all columns at once, learned from the run itself.

A metric is seen through exponential means with half-lives of 1, 4, 16 and 64 steps, and the mean absolute change over the same spans. Two things
make a step new:

- *a record*: one of these lies beyond all it was so far, by a share of its whole range (extremes creep back towards the middle, half in `MEMORY`
  steps);
- *a place where it never was*: its four means together lie far, as a share of the range, from all of up to `PLACES` places that it visited before.
  A place is kept when it is further than `VIGILANCE` from all others, and the one longest unvisited makes room (online leader clustering, Hartigan
  1975; the same idea as in adaptive resonance, Carpenter and Grossberg 1987).

Novelty is `RECORD` times the record plus the distance; 0.083 is an alarm, and an alarm's column keeps quiet for `QUIET` steps. All constants here
were chosen on the Numenta benchmark with all of its files that were at hand and their labels in view: its score (`benchmarks/numenta.py`) is that of
a fit, not of unseen data. Heavy tails, spikes that recur and periods become places and ranges that were seen. A trend sets records for ever: what a
named detector follows has its own expectation (`baseline.py`), and novelty alone raises no alert in training. Cost: O(columns x (places x 4 + 40));
see `benchmarks/detect_cost.py`. When not to use it: to tell somebody at night; it is evidence.
"""

from __future__ import annotations

import numpy as np

#: Half-lives in steps, of the means, and of the slow reference for changes.
HALVES, SLOW = np.array([1.0, 4.0, 16.0, 64.0]), 400.0

#: Steps in which extremes forget half, places kept, how far apart they are, what records weigh.
MEMORY, PLACES, VIGILANCE, RECORD = 3000.0, 64, 0.06, 0.35

#: Novelty that is an alarm, steps without another one after it, steps to learn before the first.
ALARM, QUIET, LEARN = 0.083, 100, 100

_PLACES = ("_place_msp", "_visited_mp")


class Univariate:
    """Novelty of `n` columns; `update` at each step, `grow` when columns are added."""

    def __init__(self, n: int = 0) -> None:
        s = len(HALVES)
        self._rate_s1 = np.where(HALVES <= 1, 1.0, 1 - 0.5 ** (1 / HALVES))[:, None]
        self.seen_m = np.zeros(n, dtype=np.int64)
        self._quiet_m = np.zeros(n, dtype=np.int64)
        self._mean_sm, self._change_sm = np.zeros((s, n)), np.zeros((s, n))
        self._slow_m, self._last_m = np.zeros(n), np.zeros(n)
        # Features: means, then logarithms of changes.
        self._high_fm, self._low_fm, self._middle_fm = (np.zeros((2 * s, n)) for _ in range(3))
        self._widest_sm, self._least_sm = np.zeros((s, n)), np.zeros((s, n))
        # Columns first: those of a step are then gathered as whole blocks.
        self._place_msp = np.full((n, s, PLACES), np.inf)
        self._visited_mp = np.full((n, PLACES), -1, dtype=np.int64)

    def grow(self, n: int) -> None:
        """Make room for `n` columns in all."""
        more = Univariate(n - len(self.seen_m)) if n > len(self.seen_m) else None
        for name, value in vars(self).items() if more else ():
            if name != "_rate_s1":
                setattr(self, name, np.concatenate([value, getattr(more, name)], axis=0 if name in _PLACES else -1))

    def update(self, values_m: np.ndarray) -> np.ndarray:
        """Novelty of each column at this step, [columns]; 0 while it learns, and where the value is not finite (which leaves its state as it was)."""
        here = np.flatnonzero(np.isfinite(values_m))
        novelty_m = np.zeros(len(values_m))
        if len(here) < len(values_m):
            part = self._part(here)
            novelty_m[here] = part._step(values_m[here], self, here)
            self._put(here, part)
        else:
            novelty_m = self._step(values_m, self, here)
        return novelty_m

    def alarms(self, novelty_m: np.ndarray, level: float = ALARM) -> np.ndarray:
        """Columns that raise an alarm now: novel at this level and not in the quiet after another; bool."""
        alarm_m = (novelty_m >= level) & (self.seen_m > self._quiet_m)
        self._quiet_m[alarm_m] = self.seen_m[alarm_m] + QUIET
        return alarm_m

    def _step(self, values_m: np.ndarray, whole: Univariate, here: np.ndarray) -> np.ndarray:
        """Novelty of these columns, whose places are kept in `whole` at `here`."""
        self._begin(values_m)
        self.seen_m += 1
        features_fm = self._features(values_m)
        mean_sm = features_fm[: len(HALVES)]
        record_m = self._record(features_fm)
        apart_m = self._apart(mean_sm, whole, here)
        return np.where(self.seen_m > LEARN, RECORD * record_m + apart_m, 0.0)

    def _begin(self, values_m: np.ndarray) -> None:
        """First values of columns are what they have been for ever."""
        new_m = self.seen_m == 0
        if new_m.any():
            for state in (self._mean_sm, self._widest_sm, self._least_sm):
                state[:, new_m] = values_m[new_m]
            self._slow_m[new_m], self._last_m[new_m] = 0.0, values_m[new_m]

    def _features(self, values_m: np.ndarray) -> np.ndarray:
        rate_sm = np.maximum(self._rate_s1, 1.0 / self.seen_m)
        self._mean_sm += rate_sm * (values_m - self._mean_sm)
        change_m = np.abs(values_m - self._last_m)
        self._last_m = values_m.copy()
        self._change_sm += rate_sm * (change_m - self._change_sm)
        self._slow_m += np.maximum(1 - 0.5 ** (1 / SLOW), 1.0 / self.seen_m) * (change_m - self._slow_m)
        # A thousandth of the usual change keeps the logarithm of a short standstill from being a record.
        change_sm = np.log(self._change_sm + 1e-3 * self._slow_m + 1e-12)
        return np.concatenate([self._mean_sm, change_sm])

    def _record(self, features_fm: np.ndarray) -> np.ndarray:
        """By how much of its range the feature that is most beyond its extremes is so."""
        first_m = self.seen_m == 1
        if first_m.any():
            for state in (self._high_fm, self._low_fm, self._middle_fm):
                state[:, first_m] = features_fm[:, first_m]
        high_fm, low_fm, middle_fm = self._high_fm, self._low_fm, self._middle_fm
        range_fm = np.maximum(high_fm - low_fm, 1e-9 * np.abs(features_fm) + 1e-12)
        record_m = (np.maximum(features_fm - high_fm, low_fm - features_fm) / range_fm).max(axis=0)
        middle_fm += np.maximum(1 - 0.5 ** (1 / SLOW), 1.0 / self.seen_m) * (features_fm - middle_fm)
        keep = 0.5 ** (1 / MEMORY)
        np.maximum(features_fm, middle_fm + (high_fm - middle_fm) * keep, out=high_fm)
        np.minimum(features_fm, middle_fm + (low_fm - middle_fm) * keep, out=low_fm)
        return np.clip(record_m, 0.0, 10.0)

    def _apart(self, mean_sm: np.ndarray, whole: Univariate, here: np.ndarray) -> np.ndarray:
        """Distance to the nearest place, mean over the four means, as a share of their ranges; a far one becomes a place."""
        np.maximum(self._widest_sm, mean_sm, out=self._widest_sm)
        np.minimum(self._least_sm, mean_sm, out=self._least_sm)
        range_sm = np.maximum(self._widest_sm - self._least_sm, 1e-9 * np.abs(mean_sm) + 1e-12)
        weight_sm = 1.0 / (len(HALVES) * range_sm)
        place_msp = whole._place_msp if len(here) == len(whole._place_msp) else whole._place_msp[here]
        apart_msp = place_msp - mean_sm.T[:, :, None]
        np.abs(apart_msp, out=apart_msp)
        distance_mp = np.einsum("sm,msp->mp", weight_sm, apart_msp)
        nearest_m, columns = distance_mp.argmin(axis=1), np.arange(len(here))
        apart_m = distance_mp[columns, nearest_m]
        far = np.flatnonzero(apart_m > VIGILANCE)
        nearest_m[far] = whole._visited_mp[here[far]].argmin(axis=1)
        whole._place_msp[here[far], :, nearest_m[far]] = mean_sm[:, far].T
        whole._visited_mp[here, nearest_m] = self.seen_m
        return np.minimum(apart_m, 10.0)

    def _part(self, here: np.ndarray) -> Univariate:
        """The state of some columns, copied; without their places, of which few change."""
        part = Univariate(0)
        for name, value in vars(self).items():
            if name not in _PLACES:
                setattr(part, name, value if name == "_rate_s1" else value[..., here])
        return part

    def _put(self, here: np.ndarray, part: Univariate) -> None:
        for name, value in vars(self).items():
            if name != "_rate_s1" and name not in _PLACES:
                value[..., here] = getattr(part, name)
