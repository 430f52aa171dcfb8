"""How many sequences of a global batch each replica gets, from the seconds it takes for one: the arithmetic of work balancing.

A step lasts as long as its slowest replica. With n sequences over replicas that take s[r] seconds each, the shares that end soonest, in whole
sequences, are found exactly: those of a time T, floor(T / s[r]) within bounds, for the largest T at which they do not exceed n (by bisection), and
what is left goes one by one to the replica that would have it done first. (Largest remainders of n · (1/s[r]) / Σ 1/s may end one sequence later.)
With one replica of R that is k times slower than the others, a step takes k R / (k (R - 1) + 1) times as long as without it, instead of k times: for
four and twice 1.14 instead of 2.

Bounds. A replica computes its share in micro-batches, nearly equal, of at most `limit` sequences. Where ranks of different replicas meet inside a
micro-batch (`coupled`: sharded weights, spread experts, a pipeline's schedule) all replicas have as many micro-batches; none may be empty, so no
share is smaller than that number. Elsewhere each replica has as many as it needs.

Hysteresis. Shares change only if the step is predicted to become faster by more than `BAND`, and are even where replicas differ by less than that;
so noise moves nothing, and a recovered replica gets exactly its old share back.

Cost: some hundred microseconds a step. When not to use it: with few sequences a replica, where a share is coarse: the step is longer than ideal
by up to one sequence of the slowest that got one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: Least predicted gain, as a share of the step, for which shares change; and replicas that differ by less have even shares.
BAND = 0.03

Shares = tuple[int, ...]


def any_count(count: int) -> bool:
    """The rule of a layout whose steps may have any number of micro-batches."""
    return True


@dataclass(frozen=True)
class Rules:
    """What shares must obey: so many sequences over so many replicas, at most `limit` at a time, `coupled` or not, and which counts can be run."""

    sequences: int
    replicas: int
    limit: int
    coupled: bool = False
    takes: Callable[[int], bool] = any_count

    @property
    def even(self) -> Shares:
        """The same share for all."""
        return (self.sequences // self.replicas,) * self.replicas

    def count(self, shares: Shares, share: int) -> int | None:
        """Micro-batches of a replica that has `share` of these `shares`; None where no number can be run."""
        if not self.coupled:
            return -(-share // self.limit)
        return next((count for count in range(-(-max(shares) // self.limit), min(shares) + 1) if self.takes(count)), None)

    def allow(self, shares: Sequence[int]) -> bool:
        """Whether these shares can be computed."""
        fits = len(shares) == self.replicas and sum(shares) == self.sequences and min(shares) > 0
        return fits and self.count(tuple(shares), max(shares)) is not None


def fastest_shares(seconds: Sequence[float], sequences: int, low: int, high: int) -> Shares:
    """Whole shares between `low` and `high` whose slowest replica ends soonest; `seconds` are what a sequence takes on each."""
    each = np.asarray(seconds, dtype=np.float64)
    assert len(each) * low <= sequences <= len(each) * high, "the bounds leave no shares"

    def within(time: float) -> np.ndarray:
        return np.clip(np.floor(time / each), low, high).astype(np.int64)

    early, late = 0.0, float(each.max()) * (sequences + 1)
    for _ in range(60):
        middle = (early + late) / 2
        early, late = (middle, late) if within(middle).sum() <= sequences else (early, middle)
    shares = within(early).tolist()
    next_done = [((share + 1) * float(each[r]), r) for r, share in enumerate(shares) if share < high]
    heapq.heapify(next_done)
    for _ in range(sequences - sum(shares)):
        _, r = heapq.heappop(next_done)
        shares[r] += 1
        if shares[r] < high:
            heapq.heappush(next_done, ((shares[r] + 1) * float(each[r]), r))
    return tuple(shares)


def step_seconds(seconds: Sequence[float], shares: Shares) -> float:
    """What a step takes under these shares."""
    return max(s * share for s, share in zip(seconds, shares, strict=True))


def imbalance(times: Sequence[float]) -> float:
    """The slowest replica's time over the mean: 1 if all end together."""
    return max(times) * len(times) / sum(times)


def best_shares(seconds: Sequence[float], rules: Rules) -> Shares:
    """The fastest shares that the rules allow; more micro-batches than the even shares need only where they gain more than `BAND`."""
    if not rules.coupled:
        return fastest_shares(seconds, rules.sequences, 1, rules.sequences)
    best, each = rules.even, rules.even[0]
    for count in range(-(-each // rules.limit), each + 1):
        if rules.takes(count):
            found = fastest_shares(seconds, rules.sequences, count, count * rules.limit)
            if step_seconds(seconds, found) < (1 - BAND) * step_seconds(seconds, best):
                best = found
            if max(found) < count * rules.limit:
                break  # more micro-batches would only take away from what the slowest may go down to
    return best


def next_shares(seconds: Sequence[float], shares: Shares, rules: Rules) -> Shares:
    """The shares of the next step, given those of the last and the predicted `seconds` a sequence."""
    if max(seconds) < (1 + BAND) * min(seconds):
        return rules.even
    best = best_shares(seconds, rules)
    return best if step_seconds(seconds, best) < (1 - BAND) * step_seconds(seconds, shares) else shares
