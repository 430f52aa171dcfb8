"""A run at a glance in a terminal: one frame of text, made of an overview (`overview.py`).

Cost: a millisecond. When not to use it: for programs (`penstock watch --json`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from penstock.monitor.alerts import Alert
from penstock.monitor.alerts.alert import moved_text
from penstock.monitor.overview import Line, Overview
from penstock.monitor.units import count, duration, size

BARS = "▁▂▃▄▅▆▇█"
COLOURS = {"critical": "bold red", "warning": "yellow", "notice": "cyan"}
#: Alerts that are shown in full.
SHOWN = 6


def frame(now: Overview, width: int) -> RenderableType:
    """The whole frame, `width` columns wide."""
    good = now.health == "healthy"
    head = Text.assemble((f" {now.run} ", "bold"), (now.state, "bold"), "  ", (now.health, "bold green" if good else "bold red"))
    parts: list[RenderableType] = [head, Text(" " + _where(now)), Text(" " + _ranks(now)), _metrics(now.lines, width)]
    parts += [_alert(alert) for alert in sorted(now.open, key=lambda one: (one.state != "open", -one.time))[:SHOWN]]
    if len(now.open) > SHOWN:
        parts.append(Text(f" and {len(now.open) - SHOWN} more: penstock alerts {now.run}"))
    if now.resolved:
        parts.append(Text(f" {now.resolved} resolved alert{'s' * (now.resolved != 1)}", style="dim"))
    return Group(*parts)


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as bars between their lowest and highest, newest at the right; what is not finite is a cross."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [_extreme(values[begin:end]) for begin, end in pairwise(edges)]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] if math.isfinite(value) else "×" for value in values)


def _extreme(values: Sequence[float]) -> float:
    """The one that is furthest from the middle of a few values, so that spikes stay."""
    middle = sum(values) / len(values)
    return max(values, key=lambda value: abs(value - middle) if math.isfinite(value) else math.inf)


def _where(now: Overview) -> str:
    share = f" ({now.step / now.steps:.0%})" if now.steps else ""
    parts = [f"step {now.step}/{now.steps}{share}"]
    parts += [f"ETA {duration(now.eta_s)}"] if now.eta_s is not None else []
    parts += [f"loss {now.loss:.4f}"] if now.loss is not None else []
    parts += [f"{count(now.tokens_per_s)} tokens/s"] if now.tokens_per_s is not None else []
    parts += [str(now.cost)] if str(now.cost) else []
    return "   ".join(parts)


def _ranks(now: Overview) -> str:
    total = len(now.ranks)
    if now.state != "running":
        return f"{total} rank{'s' * (total != 1)}"
    behind = [f"rank {rank} is at step {step}" for rank, step in now.ranks.items() if step < max(now.ranks.values()) - 2]
    late = f": {', '.join(behind[:4])}" if behind else ""
    watched = "watched" if now.watched else "NOT WATCHED: no monitor notes anything"
    rows = f"   {now.rows_late} rows late, {now.rows_lost} lost" if now.rows_late or now.rows_lost else ""
    return f"{now.reporting} of {total} rank{'s' * (total != 1)} report{late}   {watched}{rows}"


def _metrics(lines: Sequence[Line], width: int) -> Table:
    table = Table(box=None, padding=(0, 1), show_header=False)
    for line in lines:
        ranks = f"highest {_value(line, line.high)} on rank {line.high_rank}" if line.high > line.low else ""
        table.add_row(line.title, Text(sparkline(line.values, max(10, width - 64)), style="green"), _value(line, line.last), Text(ranks, style="dim"))
    return table


def _value(line: Line, value: float) -> str:
    return size(value) if line.unit == "bytes" else f"{value:.4g}"


def _alert(alert: Alert) -> Panel:
    body = Text(alert.what + "\n")
    body.append("cause  ", style="bold")
    body.append(alert.cause + "\n")
    if alert.evidence:
        body.append("moved  ", style="bold")
        body.append("; ".join(moved_text(one) for one in alert.evidence[:3]) + "\n")
    body.append("do     ", style="bold")
    body.append(alert.advice)
    for note in alert.notes[-2:]:
        body.append(f"\n{note}", style="dim")
    where = f", {alert.where}" if alert.where else ""
    state = "" if alert.state == "open" else f", {alert.state}"
    title = f"{alert.level} {alert.kind}{where}, since step {alert.since}, {alert.sure:.0%} sure{state}"
    return Panel(body, title=title, title_align="left", subtitle=alert.id, subtitle_align="right", border_style=COLOURS[alert.level])
