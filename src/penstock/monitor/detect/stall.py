"""A stall of communication: a step waits for a collective for longer than a whole step usually takes.

Every `wait/*` that is exposed, on the rank that waited least for it (where one rank is late the others wait for it: that is a straggler, and the late
rank waits little; where the network stalls all wait), against its own history: a usual step's time and a second, eight deviations and twice the
extreme above expectation (on a host that computes other things too, ranks wait for each other in turn, for about the time of a step). Cost: a value a
wait in the shared baseline. When not to use it: for exchange that slows by a share, which shows as throughput.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.monitor.detect.episodes import Episodes
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Columns, Silent
from penstock.monitor.series.table import StepTable

#: Seconds beyond a usual step, deviations and extremes above expectation; steps to learn before.
SECONDS, DEVIATIONS, EXTREMES, LEARN = 1.0, 8.0, 2.0, 30


class Stall(Silent):
    """Finds `communication_stall` with its collective as evidence; told once until twenty steps are without."""

    def __init__(self, expected: Expected) -> None:
        self._columns, self._waits, self._step = Columns("wait/*"), expected.part(self._least), expected.typical("time/step", log=True)
        self._episodes = Episodes(quiet=20)

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding."""
        columns = self._columns.of(table.names, table.values_rm.shape[1])
        usual, least_m, against = math.exp(min(self._step.against.expected_m[0], 700.0)), self._waits.values_m, self._waits.against
        long_m = against.residual_m > usual + SECONDS
        if not long_m.any():
            return []
        long_m &= (against.beyond(DEVIATIONS, EXTREMES) > 1) & (against.seen_m >= LEARN)
        kept = [i for i in np.flatnonzero(long_m) if _one_collective(table.names.all[columns[i]])]
        if not kept or self._step.against.seen_m[0] == 0 or not self._episodes.begins("", table.step):
            return []
        kept.sort(key=lambda i: (table.names.all[columns[i]] == "wait/total", -against.residual_m[i]))  # one that has a name says more
        moved = tuple(
            Moved(table.names.all[columns[i]], table.step, float(least_m[i]), float(against.expected_m[i]), float(against.deviations_m[i]))
            for i in kept[:4]
        )
        worst = moved[0]
        text = f"every rank waited {worst.value:.3g} s for {worst.name} at step {table.step}, where {worst.expected:.3g} s was usual"
        return [Finding("communication_stall", table.step, table.step, 0.8, None, None, moved, text)]

    def _least(self, table: StepTable) -> np.ndarray:
        """The wait of the rank that waited least, by collective; infinite where none did."""
        columns = self._columns.of(table.names, table.values_rm.shape[1])
        return np.where(table.finite_rm[:, columns], table.values_rm[:, columns], np.inf).min(axis=0, initial=np.inf)


def _one_collective(name: str) -> bool:
    """Whether seconds of an exposed collective (or of all) are measured, no count and nothing hidden."""
    return not name.endswith((".hidden", ".count")) and not name.startswith("wait/collective.")
