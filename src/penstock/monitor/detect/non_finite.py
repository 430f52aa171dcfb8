"""NaN or infinity in the loss, or in the norms of activations, gradients, weights and updates: told in the step in which it shows.

The layer is the first whose activations are not finite (the forward pass runs upwards), else the last whose gradient is not (the backward pass runs
downwards). The rank is told where one alone measured it while others measured finite values. Cost: one look at the matching columns. When not to
use it: for metrics that may be no number by their meaning.
"""

from __future__ import annotations

import numpy as np

from penstock.monitor.detect.episodes import Episodes
from penstock.monitor.detect.finding import Finding, Moved
from penstock.monitor.detect.reading import Columns, Silent, layer_of
from penstock.monitor.series.table import StepTable

#: In which order evidence is told: where a pass goes bad first.
QUANTITIES = ("activation_norm", "loss", "grad_norm", "update_norm", "weight_norm")


class NonFinite(Silent):
    """Finds values that are no numbers; one finding until ten steps are clean."""

    def __init__(self) -> None:
        self._columns = Columns(*(f"{quantity}/*" for quantity in QUANTITIES))
        self._episodes = Episodes(quiet=10)

    def update(self, table: StepTable) -> list[Finding]:
        """At most one finding, of kind `non_finite`."""
        if np.count_nonzero(table.measured_rm) == np.count_nonzero(table.finite_rm):
            return []
        columns = self._columns.of(table.names, table.values_rm.shape[1])
        finite_rm = table.finite_rm[:, columns]
        values_rm, bad_rm = table.values_rm[:, columns], table.measured_rm[:, columns] & ~finite_rm
        if not bad_rm.any() or not self._episodes.begins("", table.step):
            return []
        names = [table.names.all[columns[i]] for i in np.flatnonzero(bad_rm.any(axis=0))]
        names.sort(key=_order)
        rank = self._alone(table, columns, bad_rm)
        values = [values_rm[bad_rm[:, i], i][0] for i in np.searchsorted(columns, [table.names.column(name) for name in names])]
        moved = tuple(Moved(name, table.step, float(v), float("nan"), float("inf"), rank) for name, v in zip(names[:8], values))
        where = "" if rank is None else f" on rank {rank} alone"
        text = f"{moved[0].value} in {names[0]}{where} at step {table.step}, {len(names)} metrics are no numbers"
        return [Finding("non_finite", table.step, table.step, 1.0, rank, layer_of(names[0]), moved, text)]

    @staticmethod
    def _alone(table: StepTable, columns: np.ndarray, bad_rm: np.ndarray) -> int | None:
        """The only rank with a bad value in a metric that others measured as finite."""
        good_m = (table.measured_rm[:, columns] & ~bad_rm).any(axis=0)
        ranks = np.flatnonzero((bad_rm & good_m).any(axis=1))
        return table.ranks[ranks[0]] if len(ranks) == 1 else None


def _order(name: str) -> tuple[int, int, str]:
    quantity = name.split("/")[0]
    layer = layer_of(name)
    if layer is None:
        return QUANTITIES.index(quantity), 1_000_000, name  # what speaks of all layers says less
    return QUANTITIES.index(quantity), -layer if quantity == "grad_norm" else layer, name
