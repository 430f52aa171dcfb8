"""Axes of a chart: where a value lies between two ends, and round ticks with labels that can be told apart.

Ticks are 1, 2 or 5 times a power of ten apart. All labels of an axis share one suffix and as many decimals as their distance
needs, so that 10.00k and 10.05k do not both read 10k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: A logarithmic axis is used only where the largest value is so many times the smallest.
LOG_FROM = 20.0

#: Values that differ by a smaller share than this are drawn as the constant they nearly are.
FLAT = 1e-4

#: More ticks than this on a logarithmic axis are thinned to whole decades.
MAX_LOG_TICKS = 7


@dataclass(frozen=True)
class Axis:
    """Ends of an axis and its labelled ticks, all within the ends."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where `value` lies: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def value_axis(values: Sequence[float], log: bool = False, from_zero: bool = False) -> Axis:
    """An axis for finite values that ends at ticks; `log` (positive values only) counts only where they span decades."""
    low, high = min(values), max(values)
    if log and high > LOG_FROM * low:
        return _log_axis(low, high)
    low = min(low, 0.0) if from_zero else low
    if high - low <= FLAT * max(abs(low), abs(high)):
        pad = abs(high) * 0.05 or 1.0
        low, high = low - pad, high + pad
    step = round_step(high - low, 5)
    ticks = [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]
    return Axis(ticks[0], ticks[-1], tuple(zip(ticks, tick_labels(ticks, step))))


def step_axis(steps: Sequence[float]) -> Axis:
    """An axis of whole numbers that ends where the data does."""
    low, high = min(steps), max(steps)
    if low == high:
        return Axis(low - 1, high + 1, ((low, tick_labels([low], 1.0)[0]),))
    step = max(1.0, round_step(high - low, 6))
    ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(low, high, tuple(zip(ticks, tick_labels(ticks, step))))


def round_step(span: float, about: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that goes into `span` at most `about` times."""
    unit = 10.0 ** math.floor(math.log10(span / about))
    return next(unit * m for m in (1, 2, 5, 10) if span <= about * unit * m * (1 + 1e-9))


def tick_labels(ticks: Sequence[float], step: float) -> list[str]:
    """Labels with one suffix for all, and the decimals that tell ticks `step` apart from each other."""
    top = max(map(abs, ticks))
    scale, suffix = next(((s, name) for s, least, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e4, "k")) if top >= least), (1.0, ""))
    if 0 < top < 1e-3:
        exponent = math.floor(math.log10(top) + 1e-9)
        scale, suffix = 10.0**exponent, f"e{exponent}"
    decimals = max(0, -math.floor(math.log10(step / scale) + 1e-9))
    return [f"{t / scale:.{decimals}f}{suffix}" if abs(t) > step / 2 else "0" for t in ticks]


def _log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis whose ends are 1, 2 or 5 times a power of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    start, end = max(m for m in marks if m <= low * (1 + 1e-9)), min(m for m in marks if m >= high * (1 - 1e-9))
    ticks = [m for m in marks if start <= m <= end]
    if len(ticks) > MAX_LOG_TICKS:
        every = math.ceil((last - first) / MAX_LOG_TICKS)
        ticks = [10.0**e for e in range(first, last + 1, every) if start <= 10.0**e <= end]
    return Axis(start, end, tuple((t, tick_labels([t], t)[0]) for t in ticks), log=True)
