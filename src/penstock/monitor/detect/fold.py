"""One fault, one finding: what obviously follows from a fault that was told is left out.

A loss that spikes and does not come back also diverges, and later stands still; a slow rank slows all; what is no number spoils all that is made of
it. A finding is left out where one of its usual causes was told before it (or in the same step) and the two began within some steps of each other.
Cost: nothing to speak of. When not to use it: for causes that have to be weighed, which is what alerts do.
"""

from __future__ import annotations

from penstock.monitor.detect.finding import Finding

_LOSS = {"divergence": 100, "plateau": 100, "unusual_step": 20}
_TIME = {"throughput_drop": 20, "unusual_step": 20}

#: What follows from a fault, and within how many steps of its beginning it begins.
FOLLOWS: dict[str, dict[str, int]] = {
    "non_finite": {**_LOSS, "loss_spike": 20, "gradient_explosion": 20, "gradient_vanishing": 20},
    "loss_spike": {**_LOSS, "gradient_explosion": 20},
    "gradient_explosion": _LOSS,
    "divergence": {"plateau": 1000},
    "straggler": {**_TIME, "communication_stall": 20},
    "communication_stall": _TIME,
    "throughput_drop": {"unusual_step": 20},
}

#: Steps for which a fault is remembered as a cause.
REMEMBER = 1000


class Fold:
    """Remembers what was told; `keep` leaves out what follows from it."""

    def __init__(self) -> None:
        self._told: list[Finding] = []

    def keep(self, found: list[Finding], step: int) -> list[Finding]:
        """The findings of a step that are no mere followers."""
        if not found:
            return []
        self._told = [one for one in self._told if 0 <= step - one.step <= REMEMBER]
        kept = [one for one in found if not any(_follows(one, cause) for cause in [*self._told, *found])]
        self._told += found  # what was left out brings things about too
        return kept


def _follows(one: Finding, cause: Finding) -> bool:
    within = FOLLOWS.get(cause.kind, {}).get(one.kind)
    return within is not None and cause.since - within <= one.since <= cause.step + within
