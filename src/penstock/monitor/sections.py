"""The parts of the report that are text: samples, settings, facts and events, each as escaped HTML.

Every part takes what was recorded and says so where nothing was, because a run may end before it wrote much.
"""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from penstock.config import Config, ConfigError, parse_config
from penstock.monitor.units import size

Row = dict[str, Any]

#: Events shown: routine ones (snapshots) crowd out neither these nor each other.
MOST_EVENTS, MOST_SNAPSHOTS = 60, 8


def samples(rows: list[Row]) -> str:
    """The last, the middle and the first sample."""
    if not rows:
        return empty("no samples yet")
    chosen = sorted({len(rows) - 1, len(rows) // 2, 0}, reverse=True)
    return "".join(_sample(rows[i]) for i in chosen)


def settings(file: Path) -> str:
    """All settings of a run's `config.toml` by section, those that differ from the default marked."""
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return empty("no settings recorded")
    except ValueError as error:
        return empty(f"{file.name} is damaged: {error}")
    try:
        tree, defaults = parse_config(tree).tree(), Config().tree()
    except ConfigError:
        defaults = tree  # of another version of Penstock: shown as they are, with nothing marked
    return "".join(_section(name, values, defaults.get(name, {})) for name, values in tree.items() if isinstance(values, dict))


def facts(values: Row) -> str:
    """A table of names and values."""
    if not values:
        return empty("not recorded")
    lines = (f"<tr><th>{escape(_name(key))}</th><td>{escape(_plain(key, value))}</td></tr>" for key, value in values.items())
    return f"<table>{''.join(lines)}</table>"


def events(rows: list[Row]) -> str:
    """What happened, oldest first; of many snapshots only the newest, and a note of what is left out."""
    if not rows:
        return empty("none")
    routine = [row for row in rows if row.get("what") == "snapshot"]
    others = [row for row in rows if row.get("what") != "snapshot"]
    shown = sorted(others[-MOST_EVENTS:] + routine[-MOST_SNAPSHOTS:], key=lambda row: row.get("time", 0.0))
    left_out = len(rows) - len(shown)
    note = f'<p class="empty">{left_out:,} earlier ones, mostly snapshots, are in metrics/event.jsonl</p>' if left_out else ""
    return f"{note}<table>{''.join(map(_event, shown))}</table>"


def empty(text: str) -> str:
    """A note in place of what was not recorded."""
    return f'<p class="empty">{escape(text)}</p>'


def moment(time: Any) -> str:
    """Unix seconds or an ISO date as a short date in UTC; anything else as it is."""
    try:
        at = datetime.fromtimestamp(time, UTC) if isinstance(time, (int, float)) else datetime.fromisoformat(time).astimezone(UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return str(time)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def series(rows: list[Row], key: str) -> list[tuple[float, float]]:
    """A quantity by step, where it was recorded."""
    return [(row["step"], row[key]) for row in rows if key in row and "step" in row]


def _sample(row: Row) -> str:
    prompt, text = (escape(str(row.get(key, ""))) for key in ("prompt", "text"))
    marked = f"<mark>{prompt}</mark>" if prompt else ""
    return f'<article class="sample"><h3>after step {int(row.get("step", 0)):,}</h3><pre>{marked}{text}</pre></article>'


def _section(name: str, values: Row, defaults: Row) -> str:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            continue
        marked = f' class="changed" title="default: {escape(_toml(defaults.get(key)))}"' if value != defaults.get(key) else ""
        lines.append(f"<tr{marked}><th>{escape(key)}</th><td>{escape(_toml(value))}</td></tr>")
    nested = "".join(_section(f"{name}.{key}", value, defaults.get(key, {})) for key, value in values.items() if isinstance(value, dict))
    return f'<div class="group"><h3>{escape(name)}</h3><table>{"".join(lines)}</table></div>{nested}'


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _event(row: Row) -> str:
    what, text = (escape(str(row.get(key, ""))) for key in ("what", "text"))
    time = escape(moment(row["time"])) if "time" in row else ""
    return f"<tr><td>{time}</td><td>step {int(row.get('step', 0)):,}</td><th>{what}</th><td>{text}</td></tr>"


def _name(key: str) -> str:
    return str(key).removesuffix("_bytes").replace("_", " ")


def _plain(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_name(k)} {_plain(k, v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    return size(value) if key.endswith("bytes") else f"{value:,}"
