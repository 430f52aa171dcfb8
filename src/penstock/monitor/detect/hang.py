"""A hang: no step has ended for far longer than steps take.

The longest pause between ends of steps of late (evaluations and snapshots among them; it forgets half in five hundred steps) and a half more, or 0.7
s more if that is longer: a step that should have ended is missed within a step or a second. Where pauses are uneven, so that the longest is many
usual ones (a host with other work), it takes more to be sure: the square root of their ratio times the longest, three times it at most, and up to
two seconds. Before ten steps have ended nothing is known, and ten minutes are allowed. Cost: a few numbers. When not to use it: alone, for a dead
process, whose supervisor knows at once; and a first evaluation that takes longer than all before it looks like a hang unless `allow` is told of it.
"""

from __future__ import annotations

import math

from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.series.table import StepTable

#: Least and most times the longest pause, seconds added in either case, seconds before ten steps, steps in which the longest pause forgets half.
TIMES, MOST_TIMES, MORE, MOST_MORE, AT_FIRST, FORGET = 1.5, 3.0, 0.7, 2.0, 600.0, 500.0
#: Weight of a pause in the usual one.
WEIGHT = 0.02


class Hang:
    """Finds `hang`, once until the next step."""

    def __init__(self) -> None:
        self._step, self._time, self._longest, self._seen = 0, 0.0, 0.0, 0
        self._told, self._away, self._allowed, self._usual = False, False, 0.0, 0.0

    @property
    def patience(self) -> float:
        """Seconds after the end of a step within which the next must end."""
        if self._seen < 10:
            return AT_FIRST
        times = min(MOST_TIMES, max(TIMES, math.sqrt(self._longest / max(self._usual, 1e-9))))
        more = MORE + (MOST_MORE - MORE) * (times - TIMES) / (MOST_TIMES - TIMES)
        return max(times * self._longest, self._longest + more)

    def update(self, table: StepTable) -> list[Finding]:
        """Nothing: a step that ended is no hang."""
        if self._seen and not self._away:
            pause = table.time - self._time
            self._longest = max(self._longest * 0.5 ** (1 / FORGET), pause)
            self._usual += max(WEIGHT, 1 / self._seen) * (pause - self._usual)
        self._step, self._time, self._away = table.step, table.time, False
        self._seen += 1
        self._told, self._allowed = False, 0.0
        return []

    def begin(self, now: float, seconds: float) -> None:
        """What was learnt is of before: since when the run stood still nobody knows, and it has so many seconds more from `now` on."""
        self._time, self._away, self._told, self._allowed = now, True, False, seconds

    def renew(self) -> None:
        """Nothing: the longest pause covers it."""

    def allow(self, seconds: float) -> None:
        """Allow the pause after the last step so many seconds more: an evaluation, a snapshot, a pause that was asked for."""
        self._allowed = seconds

    def silence(self, now: float) -> list[Finding]:
        """The hang, if there is one at `now` (unix seconds)."""
        patience = self.patience + self._allowed
        pause = now - self._time
        if not self._seen or self._told or pause <= patience:
            return []
        self._told = True
        moved = Moved("time/step", self._step + 1, pause, self._longest, pause / max(self._longest, 1e-9))
        text = f"no step has ended for {pause:.3g} s after step {self._step}, where the longest pause was {self._longest:.3g} s"
        return [Finding("hang", self._step, self._step + 1, min(0.99, pause / (pause + patience) + 0.3), None, None, (moved,), text)]
