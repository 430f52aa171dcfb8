"""The run's one-page report: one HTML file, readable without scripts or network, to look at or send to somebody.

Everything comes from the run's folder; a file that is missing (a run that ended early) leaves its part out or says so. All text
from the run is escaped. The page's frame and style are `report.html` beside this file. Cost: about 50 µs and 1 KiB of
memory for each row recorded.
"""

from __future__ import annotations

import json
import math
import os
from html import escape
from pathlib import Path
from string import Template

from penstock.monitor.exchange import exchange_part
from penstock.monitor.sections import Row, events, facts, moment, samples, series, settings
from penstock.monitor.store import MetricStore
from penstock.monitor.svg import Line, chart, smoothed
from penstock.monitor.units import count, duration, seconds, size

#: Phases of a step as shown: name, key of its seconds, style of its line.
PHASES = (
    ("forward, backward", "forward_backward_s", "main"),
    ("optimizer", "optimizer_s", "second"),
    ("exchange", "exchange_s", "third"),
    ("data", "data_s", "fourth"),
)


def write_report(run: Path) -> Path:
    """Write `report.html` into the run's folder and return its path."""
    store = MetricStore(run / "metrics")
    summary, identity = _json(run / "summary.json"), _json(run / "run.json")
    rows = {kind: store.read(kind) for kind in ("train", "eval", "sample", "event")}
    state = str(summary.get("state", "unfinished"))
    frame = Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    page = frame.substitute(
        title=escape(run.resolve().name),
        subtitle=_subtitle(identity),
        state=escape(state),
        failure=_failure(state, rows["event"]),
        tiles=_tiles(summary, identity, rows),
        charts=_charts(rows),
        exchange=exchange_part(rows["train"], summary),
        samples=samples(rows["sample"]),
        settings=settings(run / "config.toml"),
        data=facts(identity.get("data", {})),
        environment=facts(identity.get("environment", {}) | _code(identity)),
        events=events(rows["event"]),
    )
    partial = run / "report.html.partial"
    partial.write_text(page, encoding="utf-8", errors="replace")
    os.replace(partial, run / "report.html")
    return run / "report.html"


def _subtitle(identity: Row) -> str:
    command = f"<code>{escape(str(identity['command']))}</code>" if identity.get("command") else ""
    created = f"<span>{escape(moment(identity['created']))}</span>" if identity.get("created") else ""
    return command + created


def _failure(state: str, rows: list[Row]) -> str:
    """Why a failed run ended, in sight at once."""
    reasons = [str(row.get("text", "")) for row in rows if row.get("what") == "failure"]
    return f'<p class="failure">{escape(reasons[-1])}</p>' if state == "failed" and reasons else ""


def _code(identity: Row) -> Row:
    """Which commit of each checkout ran, and how many of its files were changed."""
    checkouts = identity.get("code", {}).items()
    return {f"code_of_{name}": f"{code['commit'][:12] or 'no commit'}, {len(code['changed'])} files changed" for name, code in checkouts}


def _tiles(summary: Row, identity: Row, rows: dict[str, list[Row]]) -> str:
    """The headline: from the summary where the run ended properly, else from its last rows."""
    train = rows["train"]
    told = (train[-1] if train else {}) | {key: value for key, value in summary.items() if value is not None}
    wall_s = summary.get("wall_s", train[-1]["time"] - train[0]["time"] if len(train) > 1 else math.nan)
    values = [row["val_loss"] for row in rows["eval"] if "val_loss" in row]
    best = min(filter(math.isfinite, values), default=math.nan)
    steps, active = told.get("step", 0), identity.get("active_parameters")
    tiles = [
        ("validation loss", f"{values[-1]:.4f}" if values else "–", f"best {best:.4f}" if values and best < values[-1] else "nats per token"),
        ("tokens", count(told.get("tokens", 0)), f"{steps:,} step{'' if steps == 1 else 's'}"),
        ("speed", count(told["tokens_per_s"]) if told.get("tokens_per_s") else "–", "tokens per second"),
        ("utilisation", f"{told['mfu']:.0%}" if told.get("mfu") else "–", _ceiling(identity)),
        ("parameters", count(told["parameters"]) if "parameters" in told else "–", f"{count(active)} active for a token" if active else "trained"),
        ("time", duration(wall_s), "wall clock"),
    ]
    return "".join(f'<div class="tile"><h3>{name}</h3><b>{escape(value)}</b><small>{escape(note)}</small></div>' for name, value, note in tiles)


def _ceiling(identity: Row) -> str:
    """What utilisation is a share of."""
    peak = identity.get("peak", {}).get("tflops")
    return f"of {peak:.3g} TFLOP/s a rank" if peak else "of peak matrix speed"


def _charts(rows: dict[str, list[Row]]) -> str:
    train = rows["train"]
    memory = series(train, "memory_bytes")
    unit, name = (2**30, "GiB") if max((y for _, y in memory), default=0.0) >= 4 * 2**30 else (2**20, "MiB")
    validation = Line("validation", series(rows["eval"], "val_loss"), "dots")
    phases = [Line(phase, series(train, key), style) for phase, key, style in PHASES]
    balance, uneven = _noisy(train, "expert_load_max_over_mean"), _noisy(train, "imbalance")
    shares = [Line(name, series(train, f"share_{key}"), style) for name, key, style in (("largest", "max", "main"), ("smallest", "min", "second"))]
    pictures = [
        chart("Loss", [*_noisy(train, "loss"), validation], "nats per token", show=lambda v: f"{v:.4f}"),
        chart("Throughput", _noisy(train, "tokens_per_s"), "tokens per second", from_zero=True),
        chart("Learning rate", [Line("last", series(train, "lr"))], from_zero=True, show=lambda v: f"{v:.3g}"),
        chart("Gradient norm", _noisy(train, "grad_norm"), "before clipping", log_y=True),
        chart("Time of a step by phase", phases, "seconds", log_y=True, show=seconds),
        chart("Memory", [Line("last", [(x, y / unit) for x, y in memory])], name, from_zero=True, show=lambda v: size(v * unit)),
        chart("Expert load", balance, "fullest over mean", show=lambda v: f"{v:.2f}") if balance[0].points else "",
        chart("Slowest rank's own time", uneven, "over the mean", show=lambda v: f"{v:.2f}") if uneven[0].points else "",
        chart("Shares of the batch", shares, "sequences", from_zero=True, show=lambda v: f"{v:.0f}") if uneven[0].points else "",
    ]
    return "".join(pictures)


def _noisy(rows: list[Row], key: str) -> list[Line]:
    """A quantity that jumps from step to step: its values, and over them their running mean."""
    points = series(rows, key)
    return [Line("each step", points, "raw"), Line("smoothed", smoothed(points))]


def _json(file: Path) -> Row:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
