"""How large the numbers of a matrix are, row by row and column by column: log magnitude ≈ row + column.

Gradients of a matrix are sums of outer products, so their squares, Adam's moments among them, are nearly of rank one (Adafactor, Shazeer and Stern,
arXiv 1804.04235, stores no more of the second moment). A row's and a column's mean tell an entry's scale nearly as well as its other moment would,
for half a byte a row and a column.

All is integer arithmetic on log magnitudes in steps of some fraction of an octave, so that writer and reader agree to the bit. About 128 numbers of
a row or a column are looked at: normal numbers of one scale spread by 1.6 octaves, their mean then by an eighth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from penstock.store.codec.blocks import Offsets, Shape

FEW = 16  # rows or columns: fewer say too little to pay for a mean of their own
ENOUGH = 128
SPAN = 24  # octaves about the middle beyond which a magnitude does not count for more

Logs = Callable[[slice, slice], np.ndarray]


def fit(logs: Logs, shape: Shape, octave: int, unit: int) -> Offsets:
    """Offsets whose sums are near the log magnitudes (int16, in units of 1/`octave` octave) that `logs` gives of some rows and columns.

    They are multiples of `unit`, the coarser the shorter. Zeros and other outliers are cut to 24 octaves from the middle.
    """
    rows, columns = shape
    per_row = logs(slice(None), slice(None, None, max(columns // ENOUGH, 1)))
    middle = int(np.median(per_row.reshape(-1)[:: max(per_row.size // 2048, 1)]))
    low, high = middle - SPAN * octave, middle + SPAN * octave
    by_row = np.clip(per_row, low, high).sum(1, dtype=np.int32)
    if columns < FEW or rows == 1:
        by_row[:] = by_row.sum() // rows
    of_rows = _rounded(by_row, per_row.shape[1], unit)
    of_columns = np.zeros(columns, np.int16)
    if rows >= FEW and columns >= FEW:
        few = slice(None, None, max(rows // ENOUGH, 1))
        per_column = np.clip(logs(few, slice(None)), low, high)
        of_columns = _rounded(per_column.sum(0, dtype=np.int32) - of_rows[few].sum(dtype=np.int32), per_column.shape[0], unit)
    return Offsets(of_rows, of_columns, unit)


def _rounded(total: np.ndarray, count: int, unit: int) -> np.ndarray:
    """Means (int16) as multiples of a unit."""
    return ((2 * total + count * unit) // (2 * count * unit) * unit).astype(np.int16)
