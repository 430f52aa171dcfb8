"""A hang: no step has ended for far longer than steps take.

The longest pause between ends of steps of late (evaluations and snapshots among them; it forgets half in five hundred steps) times three, and a
second. Before ten steps have ended nothing is known, and ten minutes are allowed. Cost: a few numbers. When not to use it: alone, for a dead process,
whose supervisor knows at once; and a first evaluation that takes longer than all before it looks like a hang unless `allow` is told of it.
"""

from __future__ import annotations

from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.series.table import StepTable

#: Times the longest pause, seconds added, seconds before ten steps, steps in which the longest pause forgets half.
TIMES, MORE, AT_FIRST, FORGET = 3.0, 1.0, 600.0, 500.0


class Hang:
    """Finds `hang`, once until the next step."""

    def __init__(self) -> None:
        self._step, self._time, self._longest, self._seen = 0, 0.0, 0.0, 0
        self._told, self._allowed = False, 0.0

    def update(self, table: StepTable) -> list[Finding]:
        """Nothing: a step that ended is no hang."""
        if self._seen:
            self._longest = max(self._longest * 0.5 ** (1 / FORGET), table.time - self._time)
        self._step, self._time = table.step, table.time
        self._seen += 1
        self._told, self._allowed = False, 0.0
        return []

    def renew(self) -> None:
        """Nothing: the longest pause covers it."""

    def allow(self, seconds: float) -> None:
        """Allow the pause after the last step so many seconds more: an evaluation, a snapshot, a pause that was asked for."""
        self._allowed = seconds

    def silence(self, now: float) -> list[Finding]:
        """The hang, if there is one at `now` (unix seconds)."""
        patience = (AT_FIRST if self._seen < 10 else TIMES * self._longest + MORE) + self._allowed
        pause = now - self._time
        if not self._seen or self._told or pause <= patience:
            return []
        self._told = True
        moved = Moved("time/step", self._step + 1, pause, self._longest, pause / max(self._longest, 1e-9))
        text = f"no step has ended for {pause:.3g} s after step {self._step}, where the longest pause was {self._longest:.3g} s"
        return [Finding("hang", self._step, self._step + 1, min(0.99, pause / (pause + patience) + 0.3), None, None, (moved,), text)]
