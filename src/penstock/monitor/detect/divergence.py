"""Slow divergence: the smoothed loss leaves its best and keeps rising, without any jump.

The loss is smoothed over some twenty steps; its noise there is that of a step times sqrt(a / (2 - a)) (the variance of an exponential mean with
weight a). Divergence is more than ten of these above the best (of thousands of steps the best is three or four below the mean, and the worst as far
above), two hundredths of the loss, and higher than fifty and a hundred steps ago; for two hundred steps after the learning rate went up (warm-up,
restart of a schedule, a change by hand) a rise is the rate's and waits. A loss that was a tenth below where it began and is two hundredths above
that again has diverged at once, whatever the rate did. Cost: a ring of a hundred numbers. When not to use it: for a loss that is no measure of what
was learnt, as in reinforcement learning.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from penstock.monitor.detect.episodes import Episodes
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent, typical
from penstock.monitor.series.table import StepTable

#: Weight of a step in the smoothed loss, and the share of a step's noise that is left in it.
WEIGHT = 1 - 0.5 ** (1 / 20)
NOISE = float(np.sqrt(WEIGHT / (2 - WEIGHT)))

#: Steps of a rise, and steps after the rate rose in which it waits.
RISE, AFTER_RATE = 100, 200

#: Deviations above the best.
BEYOND = 10

#: Steps by which it is known where the loss began.
LEARN = 30


class Smoothed:
    """The smoothed loss with its deviation, its last values and when the learning rate last rose; `last` is a step's own, `noise` its deviation."""

    def __init__(self, expected: Expected) -> None:
        self.past: deque[float] = deque(maxlen=RISE + 1)
        self.value = self.first = self.best = self.last = float("nan")
        self.deviation = self.noise = 0.0
        self.best_step = self.seen = 0
        self._rate, self.rate_rose = 0.0, -AFTER_RATE
        self._loss = expected.typical("loss/total", lasts=True)
        self._taken: StepTable | None = None

    def update(self, table: StepTable) -> bool:
        """Take a step in, once whoever asks; False where its loss is no number."""
        loss = float(self._loss.values_m[0])
        if table is not self._taken:
            self._taken = table
            self._take(table.step, loss, typical(table, "optim/lr"))
        return bool(np.isfinite(loss))

    def _take(self, step: int, loss: float, rate: float) -> None:
        if rate > 1.02 * self._rate:
            self.rate_rose = step
            self._rate = rate
        elif rate < self._rate:
            self._rate = rate
        if not np.isfinite(loss):
            return
        self.last, self.noise = loss, float(self._loss.against.scale_m[0])
        self.deviation = NOISE * self.noise
        self.seen += 1
        self.value = loss if self.seen == 1 else self.value + max(WEIGHT, 1 / self.seen) * (loss - self.value)
        self.first = loss if self.seen == 1 else self.first
        if not self.value >= self.best:
            self.best, self.best_step = self.value, step
        self.past.append(self.value)


class Divergence(Silent):
    """Finds a loss that keeps rising (`divergence`); one finding until two hundred steps are without."""

    def __init__(self, loss: Smoothed) -> None:
        self._loss, self._episodes = loss, Episodes(quiet=200)

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding."""
        loss = self._loss
        if not loss.update(table) or not (self._rises(loss, table.step) or self._is_lost(loss)) or not self._episodes.begins("", table.step):
            return []
        above = loss.value - loss.best
        moved = Moved("loss/total", loss.best_step, loss.value, loss.best, above / max(loss.deviation, 1e-12))
        text = f"loss rose from {loss.best:.4g} at step {loss.best_step} to {loss.value:.4g} at step {table.step} (smoothed) and keeps rising"
        return [Finding("divergence", table.step, loss.best_step, 0.8, None, None, (moved,), text)]

    @staticmethod
    def _rises(loss: Smoothed, step: int) -> bool:
        """Whether it is well above its best, and rose for long without the rate having risen."""
        if len(loss.past) <= RISE or step - loss.rate_rose < AFTER_RATE:
            return False
        above, before, middle = loss.value - loss.best, loss.past[-1 - RISE], loss.past[-1 - RISE // 2]
        return above >= max(BEYOND * loss.deviation, 0.02 * abs(loss.best)) and loss.value > middle + 2 * loss.deviation and middle > before

    @staticmethod
    def _is_lost(loss: Smoothed) -> bool:
        """Whether all that was learnt is lost: it is above where it began, having been well below."""
        margin = 0.02 * abs(loss.first)
        return len(loss.past) > LEARN and loss.value > loss.first + margin and loss.best < loss.first - 5 * margin
