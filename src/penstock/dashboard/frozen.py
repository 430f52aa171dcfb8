"""A run's page frozen into one HTML file: the page itself, and the answers that it would have asked for. A run writes it at its end.

    <script type="application/octet-stream" id="frozen">…base64 of gzip of
        uint32 n | {"/frozen": {about}, "/api/v1/runs/ID/overview": {…}, …}, n bytes of JSON | the courses of all metrics (`courses.py`)

The page reads an answer from there instead of from the network if the element is there. What is in it is what the server answers, made by the same
functions and without the server. Courses are thinned to `POINTS`, or fewer where a run has so many metrics that they would take more than
`MOST_BYTES`, and `/frozen` says which are. Cost: processor time of 70 ms and 0.3 MB for a small run, of 0.5 s and 2 MB for 300 metrics of
10,000 steps, most of it for querying and packing the courses. When not to use it: while the run trains and others can reach the server.
"""

from __future__ import annotations

import gzip
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from penstock import __version__
from penstock.config import UserError, disk_errors
from penstock.dashboard.catalog import Catalog
from penstock.dashboard.courses import Asked
from penstock.dashboard.facts import alerts_told, newest_layout, run_facts, story
from penstock.dashboard.inlined import inlined
from penstock.dashboard.inside import known_grid, layout_told, ranks_told, timeline_told
from penstock.dashboard.measured import courses_of, courses_told, metrics_told
from penstock.dashboard.opened import Metrics
from penstock.dashboard.page import FOLDER
from penstock.dashboard.place import PREFIX, id_of_path
from penstock.dashboard.plain import to_json
from penstock.dashboard.standing import Standing
from penstock.monitor.alerts import read_alerts
from penstock.store.runs import Run

#: Points a metric at most and at least, and bytes of all courses before packing, that decide between them.
POINTS, LEAST_POINTS, MOST_BYTES = 1000, 100, 6 << 20
#: Bytes of a point (`courses.py`), and of the pictures of ranks over time before packing.
POINT_BYTES, GRID_BYTES = 44, 2 << 20
#: How hard the data is packed: harder takes twice the time for a twentieth less.
LEVEL = 5


def freeze(run: Run, out: Path | None = None, page: Path = FOLDER) -> dict[str, Any]:
    """Write a run's page into a file; returns where and what was thinned. Raises `UserError` where the page was not built, or the disk refuses."""
    file = out or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run.name)}.html")
    if not file.parent.is_dir():
        raise UserError(f"there is no folder {file.parent} to write {file.name} to; make it, or choose another --out")
    answers, courses = _answers(Run(run.path.resolve()))
    told = to_json(answers).encode("utf-8", "replace")
    html = inlined(page, gzip.compress(len(told).to_bytes(4, "little") + told + courses, LEVEL, mtime=0)).encode()
    partial = file.with_name(file.name + ".partial")
    try:
        with disk_errors(file.parent, f"writing {file.name}"):
            partial.write_bytes(html)
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    about = answers["/frozen"]
    found = {"run": str(run.path), "file": str(file), "bytes": len(html), "points": about["points"], "metrics": about["metrics"]}
    return found | {"thinned": len(about["thinned"])}


def _answers(run: Run) -> tuple[dict[str, Any], bytes]:
    """What the page asks for, by address as a browser writes it; and the courses of all metrics."""
    id, catalog, metrics = id_of_path(run.name), Catalog(run.path.parent), Metrics(run.path / "metrics")
    here, row = f"{PREFIX}/runs/{_encoded(id)}", catalog.row(id, run.path)
    try:
        asked = Asked(tuple(metrics.names()), None, None, _points(len(metrics.names())))
        courses = courses_of(metrics, asked)
        thinned = [course.name for course in courses if len(course.steps) < course.measured]
        found = {
            "/frozen": {"run": id, "time": time.time(), "points": asked.points, "metrics": len(asked.names), "thinned": thinned},
            f"{PREFIX}/me": {"may_act": False, "host": "", "version": __version__, "runs_dir": "", "pid": 0},
            f"{PREFIX}/runs": {"total": 1, "runs": [row]},
            here: run_facts(catalog, run, row),
            f"{here}/overview": Standing(run).as_dict(),
            f"{here}/metrics": {"metrics": metrics_told(metrics)},
            f"{here}/alerts": {"alerts": alerts_told(read_alerts(run.path))},
            f"{here}/history": story(catalog, run),
            f"{here}/inside/pipeline": timeline_told(metrics.folder, None, 0),
            f"{here}/inside/layout": layout_told(metrics.folder, newest_layout(run.path), known_grid(metrics)),
        }
        return found | _grids(metrics, f"{here}/inside/ranks"), courses_told(metrics, id, run.path, asked, courses)
    finally:
        metrics.series.close()


def _points(metrics: int) -> int:
    """Points of a course where there are so many."""
    return int(min(POINTS, max(LEAST_POINTS, MOST_BYTES / (POINT_BYTES * max(1, metrics)))))


def _grids(metrics: Metrics, address: str) -> dict[str, Any]:
    """Ranks over time of as many metrics as fit, the first also without its name."""
    first = ranks_told(metrics, "")
    found, size = {address: first}, 0
    for name in first["names"]:
        told = ranks_told(metrics, name)
        size += sum(len(told[column]) for column in ("mean", "most", "there"))
        if size > GRID_BYTES:
            break
        found[f"{address}?name={_encoded(name)}"] = told
    return found


def _encoded(text: str) -> str:
    """As a browser's `encodeURIComponent`."""
    return quote(text, safe="!~*'()")
