"""A Grafana dashboard of everything in the catalogue: one panel a quantity, over what the endpoint gives a Prometheus server.

Generated from the catalogue, so a new metric has its panel. Import the file in Grafana and choose the Prometheus source; `run` chooses among runs.
Cost: none. When not to use it: without a Prometheus server; `penstock metrics` and TensorBoard need none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.monitor.export.openmetrics import family
from penstock.monitor.series.kinds import Kind

#: Grafana's names of units; others are plain numbers.
UNITS = {"s": "s", "bytes": "bytes"}
WIDTH, HEIGHT = 12, 8


def dashboard(kinds: Iterable[Kind]) -> dict[str, Any]:
    """The dashboard's JSON model."""
    families: dict[tuple[str, str], list[Kind]] = {}
    for kind in kinds:
        families.setdefault((kind.pattern.partition("/")[0], kind.unit), []).append(kind)
    panels = [_panel(i, quantity, unit, members) for i, ((quantity, unit), members) in enumerate(families.items()) if "*" not in quantity]
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    first = family(*next(iter(families)))[0]
    run = {
        "name": "run", "label": "run", "type": "query", "datasource": {"type": "prometheus", "uid": "${source}"}, "multi": True, "includeAll": True,
        "query": {"query": f"label_values({first}, run)", "refId": "run"}, "refresh": 2,
    }  # fmt: skip
    return {
        "title": "Penstock", "uid": "penstock", "schemaVersion": 39, "version": 1, "editable": True, "tags": ["penstock"], "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"}, "templating": {"list": [source, run]}, "panels": panels,
    }  # fmt: skip


def _panel(i: int, quantity: str, unit: str, kinds: list[Kind]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    text = "\n\n".join(f"**{kind.pattern}**: {kind.meaning}. Bad: {kind.bad or '–'}." for kind in kinds)
    return {
        "id": i + 1, "type": "timeseries", "title": quantity.replace("_", " ") + (f" ({unit})" if unit not in ("", "1") else ""), "description": text,
        "datasource": source, "gridPos": {"x": WIDTH * (i % 2), "y": HEIGHT * (i // 2), "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": UNITS.get(unit, "short"), "custom": {"drawStyle": "line", "lineWidth": 1}}, "overrides": []},
        "options": {"legend": {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull", "max"]}, "tooltip": {"mode": "multi"}},
        "targets": [{
            "refId": "A", "datasource": source, "expr": f'{family(quantity, unit)[0]}{{run=~"$run"}}', "legendFormat": "{{run}} {{where}}",
        }],
    }  # fmt: skip
