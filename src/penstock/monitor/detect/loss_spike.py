"""The loss jumps up within three steps: a bad batch, a rate too high, or damage.

A step counts when the loss is above its expectation by eight robust deviations and by 1.6 times its largest residual of the last few hundred steps
(so that heavy-tailed noise is known by its own extremes), above every loss of the last ten steps, and by a hundredth of its value (a tenth where the
learning rate has just jumped up). Micro-batches far above the others of the step name the rank and the sample. Cost: one value in the shared
baseline. When not to use it: for a loss that climbs slowly (`divergence.py`).
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from penstock.monitor.detect.baseline import Against
from penstock.monitor.detect.episodes import Episodes
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Columns, Silent, typical
from penstock.monitor.series.table import StepTable

#: Deviations and extremes that a spike must exceed, the share of the loss, and steps to learn before.
DEVIATIONS, EXTREMES, SHARE, LEARN = 8.0, 1.6, 0.01, 30

#: A learning rate that jumps by this factor moves the loss by right; the share of the loss that a spike must exceed in so many steps after it.
RATE, RATE_SHARE, AFTER_RATE = 1.5, 0.1, 30


class LossSpike(Silent):
    """Finds spikes of `loss/total`; one finding until thirty steps are without."""

    def __init__(self, expected: Expected) -> None:
        self._loss, self._episodes = expected.typical("loss/total", lasts=True), Episodes(quiet=30)
        self._recent: deque[float] = deque(maxlen=10)
        self._micro = Columns("loss/micro.*")
        self._rate, self._jumped = math.inf, -AFTER_RATE

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding, of kind `loss_spike`."""
        loss = float(self._loss.values_m[0])
        if not math.isfinite(loss):
            return []
        highest = max(self._recent, default=np.inf)
        self._recent.append(loss)
        against = self._loss.against
        share = RATE_SHARE if self._after_a_jump(table) else SHARE
        jumps = loss > highest and against.residual_m[0] > share * abs(loss) and against.beyond(DEVIATIONS, EXTREMES)[0] > 1.0
        if not jumps or against.seen_m[0] < LEARN or not self._episodes.begins("", table.step):
            return []
        return [self._finding(table, loss, against)]

    def _after_a_jump(self, table: StepTable) -> bool:
        """Whether the learning rate jumped up lately: a schedule that restarts, or a change by hand."""
        rate = typical(table, "optim/lr")
        if rate > RATE * self._rate:
            self._jumped = table.step
        self._rate = rate if math.isfinite(rate) else self._rate
        return 0 <= table.step - self._jumped < AFTER_RATE

    def _finding(self, table: StepTable, loss: float, against: Against) -> Finding:
        expected, deviations = float(against.expected_m[0]), float(against.deviations_m[0])
        moved = [Moved("loss/total", table.step, loss, expected, deviations)]
        worst = self._worst_micro_batch(table)
        moved += [worst] if worst else []
        sure = min(1.0, 0.5 + 0.25 * float(against.beyond(DEVIATIONS, EXTREMES)[0]))
        text = f"loss {loss:.4g} at step {table.step} where {expected:.4g} was expected, {deviations:.0f} deviations above"
        if worst:
            text += f"; {worst.name} of rank {worst.rank} is {worst.value:.4g}"
            sample = table.of(worst.name.replace("loss/micro", "data/sample"))[table.ranks.index(worst.rank or 0)]
            text += f", from sample {sample:.0f} on" if np.isfinite(sample) else ""
        return Finding("loss_spike", table.step, table.step, sure, worst.rank if worst else None, None, tuple(moved), text)

    def _worst_micro_batch(self, table: StepTable) -> Moved | None:
        """The micro-batch that lies far above the others, if one alone does."""
        columns = self._micro.of(table.names, table.values_rm.shape[1])
        values_rm = np.where(np.isfinite(table.values_rm[:, columns]), table.values_rm[:, columns], -np.inf)
        finite = np.sort(values_rm[np.isfinite(values_rm)])
        if len(finite) < 3:
            return None
        middle, spread = float(np.median(finite[:-1])), float(np.ptp(finite[:-1]))
        if finite[-1] - middle < 3.0 * spread + SHARE * abs(middle):
            return None
        row, column = np.unravel_index(int(values_rm.argmax()), values_rm.shape)
        apart = (finite[-1] - middle) / (spread + 1e-12)
        return Moved(table.names.all[columns[column]], table.step, float(finite[-1]), middle, float(apart), table.ranks[row])
