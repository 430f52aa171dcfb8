"""What is known of a run beside its metrics: identity, settings, summary, layout, samples, alerts, forks; and how several runs differ.

Everything comes from files of the run's folder as they are; what is missing is empty, and what is damaged raises `UserError` with the file's name.
Cost: some milliseconds. When not to use it: for a list of runs (`rows.py`).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from penstock.config import Config, ConfigError, UserError, flat, parse_config
from penstock.dashboard.catalog import Catalog
from penstock.dashboard.events import HISTORY, Layout, event_of, layout_of, own_events
from penstock.dashboard.rows import Row, seconds_of
from penstock.monitor.alerts import Book
from penstock.monitor.alerts.lines import Following
from penstock.monitor.store import MetricStore
from penstock.store.runs import Run
from penstock.store.story.timeline import run_timeline

#: Samples, evaluations, and events of a history, that are shown; of more the newest.
MOST_SAMPLES, MOST_EVALS, MOST_EVENTS = 50, 2000, 5000
#: What runs are compared by: the row's or summary's key, its name, unit, and which end is better.
RESULTS: tuple[tuple[str, str, str, str | None], ...] = (
    ("val_loss", "validation loss", "nats", "low"), ("loss", "loss", "nats", "low"), ("tokens_per_s", "throughput", "tokens/s", "high"),
    ("mfu", "share of the peak", "1", "high"), ("step", "step", "", None), ("tokens", "tokens", "tokens", None),
    ("parameters", "parameters", "", None), ("ranks", "ranks", "", None),
    ("wall_s", "training time", "s", "low"), ("recoveries", "recoveries", "", "low"),
)  # fmt: skip


def run_facts(catalog: Catalog, run: Run, row: Row) -> dict[str, Any]:
    """All that a page shows of a run beside its metrics."""
    identity = run.read("run.json")
    store, settings = MetricStore(run.path / "metrics"), settings_of(run.path)
    samples = [{name: one.get(name) for name in ("step", "prompt", "text")} for one in store.read("sample")[-MOST_SAMPLES:]]
    evals = [{name: one.get(name) for name in ("step", "tokens", "val_loss", "seconds")} for one in store.read("eval")[-MOST_EVALS:]]
    layout = newest_layout(run.path)
    return {
        "row": row, "identity": identity, "settings": settings, "defaults": defaults_of(settings),
        "summary": run.read("summary.json"),
        "layout": layout or Layout(axes={}, ranks=row["ranks"], text=""), "evals": evals, "samples": samples,
        "links": {"folder": str(run.path), "parent": _parent(catalog, identity)},
    }  # fmt: skip


def settings_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The run's settings by section and key, as its `config.toml` has them; raises `UserError` where that is damaged."""
    try:
        tree = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.toml'} is damaged ({error}); restore it from a snapshot's settings") from None
    return {name: values for name, values in tree.items() if isinstance(values, dict)}


def defaults_of(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What settings that were changed are by default, by their whole names; nothing for those of another version of Penstock."""
    try:
        own, default = flat(parse_config(settings)), flat(Config())
    except ConfigError:
        return {}
    return {name: default[name] for name, value in own.items() if value != default[name]}


def newest_layout(folder: Path) -> Layout | None:
    """The layout that the newest event tells of which does."""
    found = [layout for line in Following(folder / HISTORY).read() if (layout := layout_of(line))]
    return found[-1] if found else None


def story(catalog: Catalog, run: Run) -> dict[str, Any]:
    """The run's history: snapshots, events (times are unix seconds), what is wrong with them, and its forks."""
    told = run_timeline(run.path).as_dict()
    data = {event.get("seq"): event.get("data", {}) for event in told["events"]}
    own = own_events(MetricStore(run.path / "metrics").read("event"), [event_of(event) for event in told["events"]])
    events = [event | {"data": data.get(event["seq"], {})} for event in own[-MOST_EVENTS:]]
    snapshots = [snapshot | {"time": seconds_of(snapshot["time"])} for snapshot in told["snapshots"][-MOST_EVENTS:]]
    left_out = max(0, len(own) - MOST_EVENTS)
    children = [child for event in told["events"] if (child := _child(catalog, event))]
    forks = {"parent": _parent(catalog, run.read("run.json")), "children": children}
    return told | {"events": events, "snapshots": snapshots, "left_out": left_out} | forks


def alerts_told(book: Book) -> list[dict[str, Any]]:
    """The alerts of a book as JSON, the newest first."""
    return [alert.as_dict() for alert in sorted(book.alerts.values(), key=lambda alert: (-alert.time, alert.id))]


def compared(runs: list[tuple[Run, Row]]) -> dict[str, Any]:
    """In what runs differ: settings, results, and the code that ran."""
    flat = [{f"{section}.{key}": value for section, values in settings_of(run.path).items() for key, value in values.items()} for run, _ in runs]
    keys = sorted({key for settings in flat for key in settings})
    columns = {key: [one.get(key) for one in flat] for key in keys}
    differ = [{"key": key, "values": values} for key, values in columns.items() if any(value != values[0] for value in values)]
    told = [run.read("summary.json") | {name: value for name, value in row.items() if value is not None} for run, row in runs]
    for one in told:
        one["recoveries"] = len(one.get("recoveries") or [])
    measured = [result for result in RESULTS if any(one.get(result[0]) is not None for one in told)]
    results = [{"name": name, "unit": unit, "better": better, "values": [one.get(key) for one in told]} for key, name, unit, better in measured]
    names = [{"id": row["id"], "name": row["name"], "state": row["state"]} for _, row in runs]
    return {"runs": names, "settings": differ, "results": results, "code": _codes([run for run, _ in runs])}


def _codes(runs: list[Run]) -> dict[str, Any]:
    """The checkouts that ran, and whether they are known to be the same in all runs."""
    codes = [code if isinstance(code := run.read("run.json").get("code"), dict) else {} for run in runs]
    keys = ("commit", "branch", "dirty", "diff")
    found = []
    for name in sorted({name for code in codes for name in code}):
        values = [{key: code[name].get(key) for key in keys} if isinstance(code.get(name), dict) else None for code in codes]
        found.append({"name": name, "values": values})
    same = bool(found) and all(value is not None and value == one["values"][0] and value["commit"] for one in found for value in one["values"])
    return {"checkouts": found, "same": same}


def _parent(catalog: Catalog, identity: dict[str, Any]) -> dict[str, Any] | None:
    origin = identity.get("forked_from")
    return _place(catalog, str(origin.get("run", "")), origin.get("step")) if isinstance(origin, dict) else None


def _child(catalog: Catalog, event: dict[str, Any]) -> dict[str, Any] | None:
    data = event.get("data")
    to = data.get("to") if event.get("kind") == "fork" and isinstance(data, dict) else None
    return _place(catalog, to, event.get("step")) if isinstance(to, str) else None


def _place(catalog: Catalog, path: str, step: Any) -> dict[str, Any]:
    """A run that another was forked from or to; its `run` is None where it is not in this folder."""
    return {"run": catalog.id_of(path), "name": Path(path).name, "step": step if type(step) is int else None}
