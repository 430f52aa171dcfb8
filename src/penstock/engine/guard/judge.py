"""Whether a step may be applied: before the update, its loss and its gradient's norm are held against those of the last steps.

    non_finite            the loss or the norm is no finite number
    gradient_explosion    the norm is above `TIMES` times the median of the last `SEEN` applied steps
    loss_spike            the loss is above their median by more than `DEVIATIONS` robust deviations (1.4826 × median distance), and by `SHARE` of it

The first is looked for always; the others where `alerts.act` says `skip`, once `LEARN` steps have been applied. All ranks know both numbers, so they
agree without an exchange. What was seen is part of the state, so a run that goes on from a snapshot judges as the one that made it. After
`alerts.most` batches that were left out one after another the next is applied whatever it is, if it is finite: then it is not the batch.

Rules of thumb, wide on purpose: a step that is clipped, or a hard batch, trains a model all the same. Cost: two medians of 64 numbers a step, 30 µs.
When not to use it: to be told of faults, which detectors do with far more to go by (`monitor/detect`).
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from penstock.config import SharedError
from penstock.monitor.alerts import Policy, parse_policy

if TYPE_CHECKING:
    from penstock.config import AlertsSection

#: Steps that are remembered, and how many make a judgement.
SEEN, LEARN = 64, 16
TIMES, DEVIATIONS, SHARE = 10.0, 8.0, 0.1


class BadStep(SharedError):
    """A step that is not to be applied; the weights are still those of the step before. `kind` as in alerts."""

    kind = "non_finite"

    def __init__(self, text: str, loss: float = math.nan, grad_norm: float = math.nan, kind: str = "") -> None:
        super().__init__(text)
        self.loss, self.grad_norm, self.kind = loss, grad_norm, kind or self.kind


class Judge:
    """Judges steps; `seen` are loss and norm of the last ones that were applied."""

    def __init__(self, section: AlertsSection, seen: list[list[float]]) -> None:
        self.policy: Policy = parse_policy(section.act)
        self.most = section.most
        self.seen = [list(pair) for pair in seen]

    @property
    def looks(self) -> bool:
        """Whether there is something to look for beyond what is not finite."""
        return any(action == "skip" and kind != "non_finite" for kind, action in self.policy.items())

    def objects(self, loss: float, grad_norm: float) -> tuple[str, str] | None:
        """Why a step is not to be applied: the kind, and a sentence; None if it may be."""
        if not self.looks or len(self.seen) < LEARN:
            return None
        losses, norms = ([pair[i] for pair in self.seen] for i in (0, 1))
        usual = median(norms)
        if self.policy.get("gradient_explosion") == "skip" and grad_norm > TIMES * usual:
            return "gradient_explosion", f"the gradient's norm is {grad_norm:.4g}, {grad_norm / usual:.3g} times the usual {usual:.4g}"
        usual = median(losses)
        above = DEVIATIONS * 1.4826 * median(abs(value - usual) for value in losses)
        if self.policy.get("loss_spike") == "skip" and loss > usual + max(above, SHARE * abs(usual)):
            return "loss_spike", f"the loss is {loss:.4g} where {usual:.4g} was usual"
        return None

    def applied(self, loss: float, grad_norm: float) -> None:
        """A step has been applied."""
        if self.looks:
            self.seen = [*self.seen[1 - SEEN :], [loss, grad_norm]]

    def numbers(self) -> list[list[float]]:
        """As stored with the state."""
        return [list(pair) for pair in self.seen]
