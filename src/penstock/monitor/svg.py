"""Line charts as inline SVG, drawn from numbers alone: no script, no font, no request.

A chart is a wide picture with round ticks, a grid light enough to forget, and lines in a colour-blind-safe palette (Okabe and Ito,
2008) that the page's style sheet names, so the same picture serves light and dark. Long series are thinned to the pixels they can
fill, keeping each bin's lowest and highest point, so a spike of one step stays visible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from penstock.monitor.units import count

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 36
MAX_POINTS = 600

#: A logarithmic axis is used only where the largest value is so many times the smallest.
LOG_FROM = 20.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart; `style` is a class of the page's style sheet: raw, main, second or dots."""

    name: str
    points: Sequence[Point]
    style: str = "main"


def chart(title: str, lines: Sequence[Line], unit: str = "", x_name: str = "step", log_y: bool = False, show: Callable[[float], str] = count) -> str:
    """An SVG figure of the lines, or a note where there is nothing finite to draw; `log_y` where values span decades."""
    finite = [Line(line.name, thinned([p for p in line.points if _drawable(p, log_y)]), line.style) for line in lines]
    finite = [line for line in finite if line.points]
    heading = f"<figcaption>{escape(title)}{f' <small>{escape(unit)}</small>' if unit else ''}{_legend(finite)}</figcaption>"
    if not finite:
        return f'<figure class="chart">{heading}<p class="empty">nothing recorded yet</p></figure>'
    x_of, x_ticks = _scale([p[0] for line in finite for p in line.points], LEFT, WIDTH - RIGHT, False, about=9)
    values = [p[1] for line in finite for p in line.points]
    y_of, y_ticks = _scale(values, HEIGHT - BOTTOM, TOP, log_y and max(values) > LOG_FROM * min(values))
    body = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(t):.1f}" y2="{y_of(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y_of(t) + 4:.1f}" text-anchor="end">{escape(show(t))}</text>'
        for t in y_ticks
    )
    body += "".join(f'<text class="tick" x="{x_of(t):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{count(t)}</text>' for t in x_ticks)
    body += f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_name)}</text>'
    body += "".join(_drawn(line, x_of, y_of, show) for line in finite)
    return f'<figure class="chart">{heading}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg></figure>'


def smoothed(points: Sequence[Point], share: float = 0.03) -> list[Point]:
    """Running mean over a window of `share` of the points on each side."""
    reach = max(1, round(len(points) * share))
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    result = []
    for i, (x, _) in enumerate(points):
        low, high = max(0, i - reach), min(len(points), i + reach + 1)
        result.append((x, (sums[high] - sums[low]) / (high - low)))
    return result


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points: the lowest and highest of each bin, in order, and both ends."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        indices = range(start, min(start + size, len(points)))
        kept |= {min(indices, key=lambda i: points[i][1]), max(indices, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    span = high - low
    step = 10 ** math.floor(math.log10(span / about))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _drawable(point: Point, log_y: bool) -> bool:
    return all(map(math.isfinite, point)) and (not log_y or point[1] > 0)


def _scale(values: Sequence[float], start: float, end: float, log: bool, about: int = 5) -> tuple[Callable[[float], float], list[float]]:
    """Map from values to pixels, and the ticks."""
    low, high = min(values), max(values)
    if log:
        low, high = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9)
        high = high if high > low else low + 1
        ticks = [10.0**e for e in range(low, high + 1, max(1, (high - low) // 5))]
        return lambda v: start + (math.log10(v) - low) / (high - low) * (end - start), ticks
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = abs(high) * 0.05 or 1.0
        low, high = low - pad, high + pad
    return lambda v: start + (v - low) / (high - low) * (end - start), round_ticks(low, high, about)


def _drawn(line: Line, x_of: Callable[[float], float], y_of: Callable[[float], float], show: Callable[[float], str]) -> str:
    points = [(x_of(x), y_of(y)) for x, y in line.points]
    if line.style == "dots" or len(points) == 1:
        dots = zip(points, line.points)
        return "".join(
            f'<circle class="{line.style}" cx="{a:.1f}" cy="{b:.1f}" r="4"><title>{escape(line.name)} {show(y)} at {count(x)}</title></circle>'
            for (a, b), (x, y) in dots
        )
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline class="{line.style}" points="{path}"><title>{escape(line.name)}</title></polyline>'


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    return "".join(f'<span class="key {line.style}">{escape(line.name)}</span>' for line in lines)
