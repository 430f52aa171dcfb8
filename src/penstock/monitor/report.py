"""The run's one-page report: one HTML file, readable without scripts or network, to look at or send to somebody.

Everything comes from the run's folder; a file that is missing (a run that ended early) leaves its part out or says so. All text
from the run is escaped. The page's frame and style are `report.html` beside this file.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from penstock.config import Config, ConfigError, parse_config
from penstock.monitor.store import MetricStore
from penstock.monitor.svg import Line, Point, chart, smoothed
from penstock.monitor.units import count, duration, size

Row = dict[str, Any]

#: Phases of a step as shown: name, key of its seconds, style of its line.
PHASES = (
    ("forward, backward", "forward_backward", "main"),
    ("optimizer", "optimizer", "second"),
    ("exchange", "exchange", "third"),
    ("data", "data", "raw"),
)


def write_report(run: Path) -> Path:
    """Write `report.html` into the run's folder and return its path."""
    store = MetricStore(run / "metrics")
    summary, identity = _json(run / "summary.json"), _json(run / "run.json")
    rows = {kind: store.read(kind) for kind in ("train", "eval", "sample", "event")}
    frame = Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    page = frame.substitute(
        title=escape(run.name),
        subtitle=_subtitle(summary, identity),
        state=escape(str(summary.get("state", "unfinished"))),
        tiles=_tiles(summary, rows),
        charts=_charts(rows),
        samples=_samples(rows["sample"]),
        settings=_settings(run),
        data=_table(identity.get("data", {})),
        environment=_table(identity.get("environment", {})),
        events=_events(rows["event"]),
    )
    partial = run / "report.html.partial"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, run / "report.html")
    return run / "report.html"


def _subtitle(summary: Row, identity: Row) -> str:
    pieces = [identity.get("created", ""), identity.get("command", "")]
    return " · ".join(f"<code>{escape(str(p))}</code>" for p in pieces if p)


def _tiles(summary: Row, rows: dict[str, list[Row]]) -> str:
    last: Row = rows["train"][-1] if rows["train"] else {}
    evals = rows["eval"]
    best = min((e["val_loss"] for e in evals if math.isfinite(e["val_loss"])), default=None)
    tiles = [
        ("validation loss", f"{evals[-1]['val_loss']:.4f}" if evals else "–", "none yet" if best is None else f"nats per token, best {best:.4f}"),
        ("tokens", count(summary.get("tokens") or last.get("tokens") or 0), f"{summary.get('step', last.get('step', 0)):,} steps"),
        ("speed", count(summary.get("tokens_per_s") or last.get("tokens_per_s") or 0.0), "tokens per second"),
        ("utilisation", f"{summary.get('mfu') or last.get('mfu', 0.0):.0%}", "of this machine's measured peak"),
        ("parameters", count(summary.get("parameters", 0)), "trained"),
        ("time", duration(summary.get("wall_s", 0.0)), "wall clock"),
    ]
    return "".join(f'<div class="tile"><h3>{name}</h3><b>{escape(value)}</b><small>{escape(note)}</small></div>' for name, value, note in tiles)


def _charts(rows: dict[str, list[Row]]) -> str:
    train = rows["train"]
    loss = _series(train, "loss")
    losses = [Line("each step", loss, "raw"), Line("smoothed", smoothed(loss), "main"), Line("validation", _series(rows["eval"], "val_loss"), "dots")]
    phases = [Line(name, _series(train, f"{key}_s"), style) for name, key, style in PHASES]
    pictures = [
        chart("Loss", losses, "nats per token"),
        chart("Throughput", [Line("tokens/s", _series(train, "tokens_per_s"))], "tokens per second"),
        chart("Learning rate", [Line("learning rate", _series(train, "lr"))], show=lambda v: f"{v:.2g}"),
        chart("Gradient norm", [Line("gradient norm", _series(train, "grad_norm"))], "before clipping", log_y=True, show=lambda v: f"{v:.2g}"),
        chart("Time of a step by phase", phases, "seconds", log_y=True, show=lambda v: f"{v:.2g}"),
        chart("Memory", [Line("memory", [(x, y / 2**20) for x, y in _series(train, "memory_bytes")])], "MiB", show=lambda v: f"{v:,.6g}"),
    ]
    return "".join(pictures)


def _series(rows: Iterable[Row], key: str) -> list[Point]:
    return [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), (int, float)) and "step" in row]


def _samples(rows: list[Row]) -> str:
    if not rows:
        return '<p class="empty">no samples yet</p>'
    chosen = {0: rows[0], len(rows) // 2: rows[len(rows) // 2], len(rows) - 1: rows[-1]}
    return "".join(_sample(row) for _, row in sorted(chosen.items(), reverse=True))


def _sample(row: Row) -> str:
    prompt, text = (escape(str(row.get(key, ""))) for key in ("prompt", "text"))
    return f'<article class="sample"><h3>after step {int(row.get("step", 0)):,}</h3><pre><mark>{prompt}</mark>{text}</pre></article>'


def _settings(run: Path) -> str:
    try:
        config = parse_config(tomllib.loads((run / "config.toml").read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ConfigError):
        return '<p class="empty">no settings recorded</p>'
    return "".join(_section(name, values, Config().tree()[name]) for name, values in config.tree().items())


def _section(name: str, values: Row, defaults: Row) -> str:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            continue
        changed = ' class="changed"' if value != defaults.get(key) else ""
        lines.append(f"<tr{changed}><th>{escape(key)}</th><td>{escape(json.dumps(value, ensure_ascii=False))}</td></tr>")
    nested = "".join(_section(f"{name}.{key}", value, defaults[key]) for key, value in values.items() if isinstance(value, dict))
    return f"<div class=\"group\"><h3>{escape(name)}</h3><table>{''.join(lines)}</table></div>{nested}"


def _table(values: Row) -> str:
    if not values:
        return '<p class="empty">not recorded</p>'
    lines = (f"<tr><th>{escape(str(key).replace('_', ' '))}</th><td>{escape(_plain(key, value))}</td></tr>" for key, value in values.items())
    return f"<table>{''.join(lines)}</table>"


def _plain(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(k, v)}" for k, v in value.items())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value) if not isinstance(value, list) else ", ".join(map(str, value)) or "none"
    return size(value) if key.endswith("bytes") else f"{value:,}"


def _events(rows: list[Row]) -> str:
    if not rows:
        return '<p class="empty">none</p>'
    cells = ((int(row.get("step", 0)), escape(str(row.get("what", ""))), escape(str(row.get("text", "")))) for row in rows[-50:])
    lines = "".join(f"<tr><td>step {step:,}</td><th>{what}</th><td>{text}</td></tr>" for step, what, text in cells)
    return f"<table>{lines}</table>"


def _json(file: Path) -> Row:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
