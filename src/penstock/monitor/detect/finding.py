"""What a detector says: which fault, where, since which step, how sure, and the metrics that moved.

`kind` names the fault and is what findings are grouped by later; `text` is one sentence with figures for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from penstock.monitor.series.table import StepTable


@dataclass(frozen=True)
class Moved:
    """One metric of the evidence: its value and what was expected, how many robust standard deviations apart, on which rank (None: all)."""

    name: str
    since: int
    value: float
    expected: float
    deviations: float
    rank: int | None = None


@dataclass(frozen=True)
class Finding:
    """A fault as one detector sees it: seen at `step`, began at `since`, `sure` from 0 to 1; what moved first comes first in `moved`."""

    kind: str
    step: int
    since: int
    sure: float
    rank: int | None
    layer: int | None
    moved: tuple[Moved, ...]
    text: str


class Detector(Protocol):
    """Looks at each step once, in order; bounded state, no waiting."""

    def update(self, table: StepTable) -> list[Finding]:
        """What is wrong as of this step; a fault is told once when it is found, and again only after it has passed."""
        ...

    def renew(self) -> None:
        """A step's work is another from the coming step on: what was learned of times and memory is void."""
        ...

    def silence(self, now: float) -> list[Finding]:
        """What shows in time that passes without rows (`now`: unix seconds)."""
        ...
