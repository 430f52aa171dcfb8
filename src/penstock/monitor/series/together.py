"""A step's values of all ranks as five numbers a metric: what the whole measured, the lowest and the highest rank's, and which ranks these are.

    value   spread: mean      sum: Σ x      root: √Σ x²  (each rank has the elements that it counts)      same: the lowest rank's
    low, high, low_rank, high_rank   of single ranks; a NaN counts as the highest, so it is seen and its rank is known

Ranks that did not measure a metric are left out; what none measured is `ABSENT` (ranks -1). Cost: steps of one shape at once, some 5 ns a value.
When not to use it: to compare ranks with one another, for which the table of all ranks is there (`table.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.monitor.series.kinds import Together
from penstock.monitor.series.table import ABSENT, ABSENT_BITS

NO_RANK = -1


@dataclass(frozen=True)
class Whole:
    """Five numbers a metric and step: value, low, high float64 [steps, metrics]; low_rank, high_rank int32 [steps, metrics]."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_rank: np.ndarray
    high_rank: np.ndarray


def put_together(values_srm: np.ndarray, ranks: Sequence[int], together: Sequence[Together]) -> Whole:
    """The whole of steps; values float64 [steps, ranks, metrics], one rank's number each, and how each metric's ranks go together."""
    values_srm = np.ascontiguousarray(values_srm)
    if len(ranks) == 1:
        return _of_one(values_srm[:, 0], ranks[0])
    measured = values_srm.view(np.uint64) != ABSENT_BITS
    nan = measured & np.isnan(values_srm)
    known = measured & ~nan
    low_at = _first(known, measured, np.where(known, values_srm, np.inf).argmin(1))
    high_at = _first(measured, measured, np.where(known, values_srm, -np.inf).argmax(1))
    high_at = np.where(nan.any(1), nan.argmax(1), high_at)
    any_measured = measured.any(1)
    numbers = np.asarray(ranks, dtype=np.int32)
    return Whole(
        _value(values_srm, measured, together),
        *(np.where(any_measured, np.take_along_axis(values_srm, at[:, None], 1)[:, 0], ABSENT) for at in (low_at, high_at)),
        *(np.where(any_measured, numbers[at], NO_RANK).astype(np.int32) for at in (low_at, high_at)),
    )


def _first(wanted: np.ndarray, measured: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Ranks' places [steps, metrics] where they are wanted ones, else the first that is, else the first that measured."""
    there = np.take_along_axis(wanted, at[:, None], 1)[:, 0]
    return np.where(there, at, np.where(wanted.any(1), wanted.argmax(1), measured.argmax(1)))


def _of_one(values: np.ndarray, rank: int) -> Whole:
    where = np.where(values.view(np.uint64) != ABSENT_BITS, np.int32(rank), np.int32(NO_RANK))
    return Whole(values, values, values, where, where)


def _value(values_srm: np.ndarray, measured: np.ndarray, together: Sequence[Together]) -> np.ndarray:
    out = np.full((values_srm.shape[0], values_srm.shape[2]), ABSENT)
    how = np.asarray(together)
    with np.errstate(all="ignore"):  # infinities are measured, too
        for kind in set(together):
            columns = np.flatnonzero(how == kind)
            x, there = values_srm[:, :, columns], measured[:, :, columns]
            if kind == "same":
                found = np.take_along_axis(x, there.argmax(1)[:, None], 1)[:, 0]
            elif kind == "root":
                found = np.sqrt(np.where(there, x * x, 0.0).sum(1))
            else:
                found = np.where(there, x, 0.0).sum(1)
                found = found / np.maximum(there.sum(1), 1) if kind == "spread" else found
            out[:, columns] = np.where(there.any(1), found, ABSENT)
    return out
