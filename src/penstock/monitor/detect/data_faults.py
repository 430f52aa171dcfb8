"""Data that repeats itself, or is damaged: what the tokens of a rank look like against what they looked like before.

Repetition: `data/repeated` (share of a rank's sequences that it has read lately) above what was seen before by a quarter, in two of three steps.
Corruption: entropy, surprise or longest run of a rank's tokens at ten robust deviations and twice the largest recent residual from what is usual, and
by a tenth of it. How many distinct tokens there are says nothing by itself: a table of characters in a source file has many. Cost: three values
a rank in the shared baseline. When not to use it: on data sorted by source, whose sources look like corruption when they change.
"""

from __future__ import annotations

import numpy as np

from penstock.monitor.detect.episodes import Episodes, Streak
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Silent, by_rank, number
from penstock.monitor.series.table import StepTable

#: What is looked at, and by how much it must change at least: a rule of 80 dashes is most of a short sequence, but a damaged file fills whole ones.
MEASURES = {"data/entropy": 0.0, "data/surprise": 0.0, "data/longest_run": 0.7}

#: Deviations, extremes, and the share of the usual value that damage must exceed; steps to learn before.
DEVIATIONS, EXTREMES, SHARE, LEARN = 10.0, 2.0, 0.1, 30

#: By how much repetition must rise above what it was.
REPEATED = 0.25


class DataFaults(Silent):
    """Finds `data_corruption` and `data_repetition` with their rank; each told once until thirty steps are without."""

    def __init__(self, expected: Expected) -> None:
        self._measures = expected.part(_measures)
        self._highest, self._repeats = 0.0, Streak(3)
        self._episodes = Episodes(quiet=30)

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding of each kind."""
        return self._corrupted(table) + self._repeated(table)

    def _corrupted(self, table: StepTable) -> list[Finding]:
        values_m, against, names = self._measures.values_m, self._measures.against, tuple(MEASURES)
        far_m = np.abs(against.residual_m) > DEVIATIONS * against.scale_m
        if not far_m.any():
            return []
        far_m &= (against.beyond(DEVIATIONS, EXTREMES) > 1) & (against.seen_m >= LEARN)
        least_m = np.tile(list(MEASURES.values()), len(values_m) // len(names))
        far_m &= np.abs(against.residual_m) > np.maximum(SHARE * np.abs(against.expected_m), least_m)
        moved = []
        for i in np.flatnonzero(far_m).tolist():
            reader, measure = divmod(i, len(names))
            value, expected, deviations = (float(vector[i]) for vector in (values_m, against.expected_m, against.deviations_m))
            moved.append(Moved(names[measure], table.step, value, expected, deviations, reader))
        if not moved or not self._episodes.begins("corruption", table.step):
            return []
        moved.sort(key=lambda one: -abs(one.deviations))
        first = moved[0]
        rank = first.rank if len({one.rank for one in moved}) == 1 else None
        text = f"{first.name} of rank {first.rank} is {first.value:.3g} at step {table.step} where {first.expected:.3g} was usual"
        return [Finding("data_corruption", table.step, table.step, 0.7 if len(moved) == 1 else 0.9, rank, None, tuple(moved[:6]), text)]

    def _repeated(self, table: StepTable) -> list[Finding]:
        values_r = number(table.of("data/repeated"))
        worst = int(values_r.argmax())
        repeats = float(values_r[worst]) > self._highest + REPEATED
        count = self._repeats.add(table.step, repeats)
        if not repeats:
            self._highest = max(self._highest, float(values_r[worst]))
        if count < 2 or not self._episodes.begins("repetition", table.step):
            return []
        usual, self._highest, since = self._highest, float(values_r[worst]), self._repeats.since
        rank = table.ranks[worst] if (values_r > usual + REPEATED).sum() == 1 < len(values_r) else None
        moved = Moved("data/repeated", since, float(values_r[worst]), usual, (values_r[worst] - usual) / REPEATED, table.ranks[worst])
        share, who = float(values_r[worst]), table.ranks[worst]
        text = f"{share:.0%} of the sequences of rank {who} were read before, since step {since}, where at most {usual:.0%} were"
        return [Finding("data_repetition", table.step, since, 0.9, rank, None, (moved,), text)]


def _measures(table: StepTable) -> np.ndarray:
    """The measures of rank 0, then those of rank 1, and so on."""
    return np.stack([by_rank(table.ranks, table.of(name)) for name in MEASURES], axis=1).ravel()
