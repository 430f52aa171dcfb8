"""A pipeline's timeline as SVG: a row a rank, a block an action, its micro-batch's number where it fits, and what is idle left as a bare band.

Works have hues of a colour-blind-safe palette (Okabe and Ito, 2008) and a rank's chunks shades of them, lighter the later the chunk comes. Text is a
grey that can be read on light and on dark, and the ground is left open. The picture is as wide as a short action's number needs, up to `MOST` pixels;
blocks tell their times when pointed at, unless there are so many that the file would be large.
"""

from __future__ import annotations

import math
from collections import defaultdict
from html import escape

from penstock.parallel.pipeline.schedule import Schedule
from penstock.parallel.pipeline.simulate import Timing
from penstock.parallel.pipeline.timeline import Timeline, timeline_of

LEAST, MOST, BLOCK = 760, 3200, 15
LEFT, RIGHT, TOP, ROW, GAP, BOTTOM = 58, 16, 62, 22, 5, 34
TOOLTIPS = 6000

#: Hue and meaning of each work.
WORKS = {
    "F": ((0, 114, 178), "forward"),
    "I": ((213, 94, 0), "input gradient"),
    "W": ((0, 158, 115), "weight gradient"),
    "B": ((204, 121, 167), "backward"),
}
LIGHTEST = 0.62
GREY = "#808080"

Colour = tuple[int, int, int]


def schedule_svg(timing: Timing, schedule: Schedule, title: str = "", unit: str = "") -> str:
    """A simulated schedule as an SVG document; see `timeline_svg`."""
    return timeline_svg(timeline_of(schedule, timing), title, unit)


def timeline_svg(timeline: Timeline, title: str = "", unit: str = "s") -> str:
    """A timeline as an SVG document; the title names kind, size and bubble unless one is given, `unit` is written beside the time axis."""
    ranks, length = len(timeline.spans), timeline.makespan_s or 1.0
    times = sorted(end - start for row in timeline.spans for _, start, end in row if end > start)
    width = round(min(MOST, max(LEAST, LEFT + RIGHT + BLOCK * length / times[len(times) // 4] if times else 0.0)))
    height = TOP + ranks * (ROW + GAP) + BOTTOM
    scale = (width - LEFT - RIGHT) / length
    chunk = _chunks(timeline.rank_of)
    steps = f", {timeline.steps} steps" if timeline.steps > 1 else ""
    title = title or f"{timeline.kind}: {ranks} ranks, {timeline.micro_batches} micro-batches{steps}, bubble {timeline.bubble:.1%}"
    bands = "".join(f'<rect x="{LEFT}" y="{_y(r)}" width="{width - LEFT - RIGHT}" height="{ROW}"/>' for r in range(ranks))
    names = "".join(f'<text x="{LEFT - 8}" y="{_y(r) + ROW / 2 + 4:g}" text-anchor="end">rank {r}</text>' for r in range(ranks))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        f' style="max-width:100%;height:auto" role="img" aria-label="{escape(title)}"',
        f' font-family="system-ui, sans-serif" font-size="12" fill="{GREY}">',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600">{escape(title)}</text>{_legend(timeline, chunk)}',
        f'<g fill-opacity="0.16">{bands}</g>{names}{_axis(length, scale, height, unit)}{_blocks(timeline, chunk, scale)}</svg>\n',
    ]
    return "".join(parts)


def _y(rank: int) -> int:
    return TOP + rank * (ROW + GAP)


def _chunks(rank_of: tuple[int, ...]) -> list[int]:
    """Which chunk of its rank each stage is, from 0."""
    seen: dict[int, int] = defaultdict(int)
    numbers = []
    for rank in rank_of:
        numbers.append(seen[rank])
        seen[rank] += 1
    return numbers


def _shade(work: str, chunk: int, chunks: int) -> Colour:
    """The work's hue, mixed with white the more the later the chunk comes."""
    white = LIGHTEST * chunk / max(1, chunks - 1) if chunks > 1 else 0.0
    red, green, blue = (round(part + (255 - part) * white) for part in WORKS[work][0])
    return red, green, blue


def _ink(colour: Colour) -> str:
    """Black or white, whichever is read better on a colour (its luma by ITU-R BT.601)."""
    red, green, blue = colour
    return "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#fff"


def _blocks(timeline: Timeline, chunk: list[int], scale: float) -> str:
    """All actions, grouped by colour, then their numbers, grouped by ink."""
    rects: dict[Colour, list[str]] = defaultdict(list)
    texts: dict[str, list[str]] = defaultdict(list)
    told = sum(map(len, timeline.spans)) <= TOOLTIPS
    for rank, row in enumerate(timeline.spans):
        y = _y(rank)
        for (work, stage, micro), start, end in row:
            colour = _shade(work, chunk[stage], max(chunk) + 1)
            x, wide = LEFT + (start - timeline.start_s) * scale, (end - start) * scale
            at = f'x="{x:.2f}" y="{y}" width="{max(0.3, wide - min(0.8, wide / 5)):.2f}" height="{ROW}"'
            when = f"{start - timeline.start_s:.4g} to {end - timeline.start_s:.4g}"
            tip = f"<title>{WORKS[work][1]}, stage {stage}, micro-batch {micro}: {when}</title>"
            rects[colour].append(f"<rect {at}>{tip}</rect>" if told else f"<rect {at}/>")
            if wide >= 3 + 5.5 * len(str(micro)):
                texts[_ink(colour)].append(f'<text x="{x + wide / 2:.1f}" y="{y + ROW / 2 + 3.5}">{micro}</text>')
    drawn = "".join(f'<g fill="rgb{colour}">{"".join(group)}</g>' for colour, group in rects.items())
    numbers = "".join(f'<g fill="{ink}">{"".join(group)}</g>' for ink, group in texts.items())
    return f'{drawn}<g font-size="10" text-anchor="middle" pointer-events="none">{numbers}</g>'


def _legend(timeline: Timeline, chunk: list[int]) -> str:
    """A swatch of all shades for each work there is, and one for idle."""
    used = {action.work for row in timeline.spans for action, _, _ in row}
    chunks, x, parts = max(chunk) + 1, LEFT, []
    for work, (_, meaning) in WORKS.items():
        if work not in used:
            continue
        parts += [f'<rect x="{x + 12 * i}" y="36" width="12" height="12" fill="rgb{_shade(work, i, chunks)}"/>' for i in range(chunks)]
        x += 12 * chunks + 6
        parts.append(f'<text x="{x}" y="46">{meaning}</text>')
        x += 7 * len(meaning) + 18
    parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill-opacity="0.16"/><text x="{x + 18}" y="46">idle</text>')
    if chunks > 1:
        parts.append(f'<text x="{x + 58}" y="46">shades: stages of a rank, the first darkest</text>')
    return "".join(parts)


def _axis(length: float, scale: float, height: int, unit: str) -> str:
    """Ticks at round times, with lines light enough to be forgotten."""
    rough = length / 10
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    bottom, parts = height - BOTTOM, []
    for i in range(int(length / step) + 1):
        x = LEFT + i * step * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom + 3}" stroke="{GREY}" stroke-opacity="0.3"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{i * step:.6g}</text>')
    return "".join(parts) + (f'<text x="{LEFT - 8}" y="{bottom + 18}" text-anchor="end">{escape(unit)}</text>' if unit else "")
