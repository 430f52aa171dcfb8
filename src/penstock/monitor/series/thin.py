"""Fewer points of a course, chosen so that no peak, dip, NaN or infinity disappears.

The rows are divided into stretches of equal length; of each the lowest, the highest and the first NaN stay, and so do the first and the last row
(the MinMax selection of Jugel et al., M4: a visualization-oriented time series data aggregation, VLDB 2014). Thinned courses that are put behind each
other and thinned again keep their extremes, so a long course needs never be in memory whole. Cost: O(rows), some 5 ns each. When not to use it: for
means or spectra, which a choice of extremes distorts.
"""

from __future__ import annotations

import numpy as np


def extremes(low: np.ndarray, high: np.ndarray, points: int) -> np.ndarray:
    """About `points` row numbers at most (4 at least), in order, that keep the extremes of `low` and `high`, float64 [rows], and NaN among them."""
    rows = len(low)
    if rows <= points:
        return np.arange(rows)
    nan = np.isnan(high) | np.isnan(low)
    picks = 3 if nan.any() else 2
    stretches = max(1, (points - 2) // picks)
    width = -(-rows // stretches)
    starts = np.arange(0, rows, width)
    lowest, highest = _stretches(low, width, np.inf, nan).argmin(1), _stretches(high, width, -np.inf, nan).argmax(1)
    chosen = [np.array([0, rows - 1]), starts + lowest, starts + highest]
    if picks == 3:
        first = _stretches(nan.astype(np.float64), width, 0.0, None)
        chosen.append((starts + first.argmax(1))[first.any(1)])
    kept = np.zeros(rows, bool)  # quicker than sorting and joining row numbers
    for some in chosen:
        kept[np.minimum(some, rows - 1)] = True
    return np.flatnonzero(kept)


def _stretches(values: np.ndarray, width: int, fill: float, nan: np.ndarray | None) -> np.ndarray:
    """The values in rows of `width`, with `fill` behind the end and for NaN."""
    padded = np.full(-(-len(values) // width) * width, fill)
    padded[: len(values)] = values if nan is None else np.where(nan, fill, values)
    return padded.reshape(-1, width)
