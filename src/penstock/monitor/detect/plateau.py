"""A loss that stands still: it gains less than a quarter of what its own pace before would have brought, beyond the noise of its steps.

A healthy loss falls about evenly in the logarithm of the step (a power law does, nearly), ever less a step, so no number of steps without a gain is
a plateau by itself, and two values of a noisy loss tell nothing. The loss is averaged over stretches, each a quarter of an octave of steps. From an
earlier stretch i to the last one j, at most two octaves later and `FLAT` steps at least, with u the logarithm of a stretch's middle,

    expected = (u_j - u_i) · (mean_h - mean_i) / (u_i - u_h)        h: one and a half octaves before i
    gained   = mean_i - mean_j ,  error = noise of a step · sqrt(1 / n_i + 1 / n_j)

and the loss stands if gained + 3 error < expected / 4, and it is within two hundredths of what it was. It is looked for in the first half of a run
whose length is known; where steps are noisy it takes as many of them as it takes to be sure. Power laws with exponents up to one gain more than a
quarter. Cost: a sum a step. When not to use it: for a loss that leaps after a rest, such as a game's or a puzzle's: its rests are told.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from penstock.monitor.detect.divergence import Smoothed
from penstock.monitor.detect.episodes import Episodes
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent, typical
from penstock.monitor.series.table import StepTable

#: Stretches an octave, those by which the pace is known, those that are looked back on, and the last step of the first.
OCTAVE, PACE, BACK, FIRST = 4, 6, 8, 16
#: Steps that a loss stands at least, steps until it is told again, share of the expected gain, its errors, and how far the loss may be off.
FLAT, QUIET, SHARE, ERRORS, WITHIN = 400, 400, 0.25, 3.0, 0.02


@dataclass(frozen=True)
class Stretch:
    """The loss of `n` steps up to `step`, around the step whose logarithm is `at`."""

    at: float
    mean: float
    n: int
    step: int


class Plateau(Silent):
    """Finds a loss that stands still (`plateau`); one finding until it falls again for long."""

    def __init__(self, loss: Smoothed) -> None:
        self._loss, self._episodes = loss, Episodes(QUIET)
        self._stretches: deque[Stretch] = deque(maxlen=PACE + BACK + 1)
        self._sum, self._n, self._end = 0.0, 0, FIRST
        self._stands: Stretch | None = None

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding."""
        loss, progress = self._loss, typical(table, "optim/progress")
        if not loss.update(table):
            return []
        self._sum, self._n = self._sum + loss.last, self._n + 1
        if table.step >= self._end:
            self._close(table.step)
        since = self._stands
        if since is None or not progress < 0.5 or not self._episodes.begins("", table.step):
            return []
        now = self._stretches[-1].mean
        moved = Moved("loss/total", since.step, now, since.mean, (since.mean - now) / max(loss.noise, 1e-12))
        gained, left = f"{since.mean - now:+.2g} gained", f"{1 - progress:.0%} of the run are to come"
        text = f"loss stands at {now:.4g} since step {since.step} (means, {gained}) though {left}"
        return [Finding("plateau", table.step, since.step, 0.6, None, None, (moved,), text)]

    def _close(self, step: int) -> None:
        """A stretch is full: hold it against those before."""
        middle = math.log(step - (self._n - 1) / 2)
        self._stretches.append(Stretch(middle, self._sum / self._n, self._n, step))
        self._sum, self._n, self._end = 0.0, 0, max(step + 1, math.ceil(step * 2 ** (1 / OCTAVE)))
        last = self._stretches[-1]
        pairs = zip(self._stretches, list(self._stretches)[PACE:])
        standing = (one for before, one in pairs if last.step - one.step >= FLAT and _stands(before, one, last, self._loss.noise))
        self._stands = next(standing, None)


def _stands(before: Stretch, since: Stretch, last: Stretch, noise: float) -> bool:
    """Whether the loss stands from `since` to the last stretch, by its pace from the one before; `noise` is a step's deviation."""
    expected = (last.at - since.at) * (before.mean - since.mean) / (since.at - before.at)
    gained, error = since.mean - last.mean, noise * math.sqrt(1 / since.n + 1 / last.n)
    return gained + ERRORS * error < SHARE * expected and abs(gained) < WITHIN * abs(last.mean)
