"""Line charts as inline SVG, drawn from numbers alone: no script, no font, no request.

A chart is a wide picture with round ticks, a grid light enough to forget, and lines in a colour-blind-safe palette (Okabe and Ito,
2008) that the page's style sheet names, so the same picture serves light and dark. Long series are thinned to the pixels they can
fill, keeping each bin's lowest and highest point, so a spike of one step stays visible; a line is broken where a value was not
finite. Some points of each line carry their number as a tooltip.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from operator import itemgetter

from penstock.monitor.axis import Axis, step_axis, value_axis
from penstock.monitor.units import count

WIDTH, HEIGHT = 520, 224
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 12, 32
MAX_POINTS = 600

#: Points of a line that show their number when pointed at.
TOOLTIPS = 40

Point = tuple[float, float]
Show = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """One line of a chart; `style` is a class of the page's style sheet: raw, main, second, third or dots."""

    name: str
    points: Sequence[Point]
    style: str = "main"


@dataclass(frozen=True)
class Drawn:
    """A line made ready: the points that are drawn, and the steps where it is broken."""

    name: str
    style: str
    points: list[Point]
    gaps: list[float]


def chart(title: str, lines: Sequence[Line], unit: str = "", log_y: bool = False, from_zero: bool = False, show: Show = count) -> str:
    """An SVG figure of values by step, or a note where there is nothing to draw; `log_y` where positive values span decades."""
    drawn = [made for line in lines if (made := _ready(line, log_y)).points]
    lost = max((sum(not math.isfinite(p[1]) for p in line.points) for line in lines), default=0)
    heading = f"<figcaption>{escape(title)}{_small(unit)}{_legend(drawn, show)}{_small(f'{lost:,} not finite' if lost else '', 'bad')}</figcaption>"
    if not drawn:
        return f'<figure class="chart">{heading}<p class="empty">nothing recorded yet</p></figure>'
    x = step_axis([p[0] for line in drawn for p in line.points])
    y = value_axis([p[1] for line in drawn for p in line.points], log_y, from_zero)
    body = _grid(x, y) + "".join(_curve(line, x, y, show) for line in drawn)
    return f'<figure class="chart">{heading}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg></figure>'


def smoothed(points: Sequence[Point], share: float = 0.02) -> list[Point]:
    """Mean over a window of `share` of the finite points on each side (less near the start); what is not finite stays so."""
    finite = [y for _, y in points if math.isfinite(y)]
    reach = max(1, round(len(finite) * share))
    sums = [0.0]
    for y in finite:
        sums.append(sums[-1] + y)
    result, i = [], 0
    for x, y in points:
        if math.isfinite(y):
            near = min(reach, i)
            low, high = i - near, min(len(finite), i + near + 1)
            y, i = (sums[high] - sums[low]) / (high - low), i + 1
        result.append((x, y))
    return result


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points: the lowest and highest of each bin, in order, and both ends."""
    if len(points) <= limit:
        return list(points)
    value, size = itemgetter(1), math.ceil(2 * len(points) / limit)
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        bin_ = points[start : start + size]
        kept |= {min(bin_, key=value), max(bin_, key=value)}
    return sorted(kept)


def _ready(line: Line, log_y: bool) -> Drawn:
    least = 0.0 if log_y else -math.inf
    good = [p for p in line.points if least < p[1] < math.inf]
    gaps = [p[0] for p in line.points if not least < p[1] < math.inf] if len(good) < len(line.points) else []
    return Drawn(line.name, line.style, thinned(good), gaps)


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - RIGHT - LEFT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - BOTTOM - TOP)


def _grid(x: Axis, y: Axis) -> str:
    rows = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(y, t):.1f}" y2="{_y(y, t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{_y(y, t) + 4:.1f}" text-anchor="end">{label}</text>'
        for t, label in y.ticks
    )
    columns = "".join(
        f'<text class="tick" x="{_x(x, t):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>' for t, label in x.ticks if _x(x, t) > LEFT + 20
    )
    return f'{rows}{columns}<text class="tick" x="{LEFT - 8}" y="{HEIGHT - 6}" text-anchor="end">step</text>'


def _curve(line: Drawn, x: Axis, y: Axis, show: Show) -> str:
    """The line itself and its tooltips; dots where it has but one point."""
    if line.style == "dots" or len(line.points) == 1:
        return "".join(_dot(line, p, x, y, show, f"{line.style} dot") for p in line.points)
    pieces, before = [], -math.inf
    for step, value in line.points:
        broken = before == -math.inf or bisect(line.gaps, step) > bisect(line.gaps, before)
        pieces.append(f"{'M' if broken else 'L'}{_x(x, step):.1f} {_y(y, value):.1f}{'h0' if broken else ''}")
        before = step
    told = [] if line.style == "raw" else line.points[:: math.ceil(len(line.points) / TOOLTIPS)]
    return f'<path class="{line.style}" d="{"".join(pieces)}"/>' + "".join(_dot(line, p, x, y, show, f"{line.style} hit") for p in told)


def _dot(line: Drawn, point: Point, x: Axis, y: Axis, show: Show, style: str) -> str:
    told = f"<title>step {point[0]:,.0f}: {escape(line.name)} {escape(show(point[1]))}</title>"
    return f'<circle class="{style}" cx="{_x(x, point[0]):.1f}" cy="{_y(y, point[1]):.1f}" r="4">{told}</circle>'


def _legend(lines: Sequence[Drawn], show: Show) -> str:
    """The lines' names and, but for raw ones, their last values."""
    last = ("" if line.style == "raw" else f" <b>{escape(show(line.points[-1][1]))}</b>" for line in lines)
    return "".join(f'<span class="key {line.style}">{escape(line.name)}{value}</span>' for line, value in zip(lines, last))


def _small(text: str, style: str = "") -> str:
    return f' <small class="{style}">{escape(text)}</small>' if text else ""
