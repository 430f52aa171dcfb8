"""Dead experts: experts of a layer that get no token for many steps.

`expert_load/layer.NN.dead` above zero in fifty steps on end, in forty of which the idlest expert (`.idlest`) was the same one: where routing is young
or uneven some expert is idle in every step, and each time another. Routing is uneven in the first steps of a run, which do not count. Cost: one
number for each layer. When not to use it: with fewer tokens a step than experts, where some are idle by chance.
"""

from __future__ import annotations

from collections import Counter, deque

import numpy as np

from penstock.monitor.detect.episodes import Episodes
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Columns, Silent, layer_of, typical
from penstock.monitor.series.table import StepTable

#: Steps on end, and steps that do not count at the beginning.
STEPS, LEARN = 50, 50

#: Of these steps, those in which the same expert is the idlest.
SAME = 40


class DeadExperts(Silent):
    """Finds `dead_experts` with its layer; told once until a hundred steps are without."""

    def __init__(self) -> None:
        self._columns, self._episodes = Columns("expert_load/*.dead"), Episodes(quiet=100)
        self._since: dict[int, int] = {}
        self._idlest: dict[int, deque[float]] = {}
        self._seen = 0

    def update(self, table: StepTable) -> list[Finding]:
        """A finding for every layer whose experts have died."""
        self._seen += 1
        found = []
        for column in self._columns.of(table.names, table.values_rm.shape[1]):
            finite = table.values_rm[np.isfinite(table.values_rm[:, column]), column]
            if len(finite) == 0 or self._seen <= LEARN:
                continue
            dead = float(finite.max())
            if dead == 0:
                self._since.pop(column, None)
                self._idlest.pop(column, None)
                continue
            since = self._since.setdefault(column, table.step)
            name = table.names.all[column]
            idlest = self._idlest.setdefault(column, deque(maxlen=STEPS))
            idlest.append(typical(table, name.replace(".dead", ".idlest")))
            if table.step - since + 1 >= STEPS and _same(idlest) >= SAME and self._episodes.begins(column, table.step):
                moved = Moved(name, since, dead, 0.0, float("inf"))
                text = f"{dead:.0%} of the experts of layer {layer_of(name)} got no token since step {since}"
                found.append(Finding("dead_experts", table.step, since, 0.9, None, layer_of(name), (moved,), text))
        return found


def _same(idlest: deque[float]) -> int:
    """In how many steps the expert that was idlest most often was it."""
    return Counter(idlest).most_common(1)[0][1]
