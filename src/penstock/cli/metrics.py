"""`penstock metrics`: what a run measured, asked, exported, served. As in `app.py`, commands parse, call and print."""

from __future__ import annotations

import json as json_
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from penstock.cli import output
from penstock.cli.options import Json

if TYPE_CHECKING:
    from penstock.monitor.series import Bound, Kinds, Series
    from penstock.store import Run

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BRIDGES = ("wandb", "mlflow", "trackio", "otel")
#: Points a metric of a table, and of what is sent elsewhere, has at most.
TABLE_POINTS, SENT_POINTS = 100, 10_000


def metrics(
    run: Annotated[Optional[str], typer.Argument(metavar="[RUN]", help="A run's folder or name, or 'last'.")] = None,  # noqa: UP045
    query: Annotated[Optional[list[str]], typer.Option("--query", metavar="GLOB", help="Names, such as 'grad_norm/*'; may be given several times.")] = None,  # noqa: UP045, E501
    since: Annotated[Optional[str], typer.Option("--since", metavar="10m|STEP", help="From a step on, or from so long before the last row.")] = None,  # noqa: UP045
    until: Annotated[Optional[str], typer.Option("--until", metavar="5m|STEP", help="Up to a step, or to so long before the last row.")] = None,  # noqa: UP045
    points: Annotated[int, typer.Option("--points", min=0, help="Rows a metric at most, chosen so that extremes stay; 0: all.")] = 0,
    csv: Annotated[bool, typer.Option("--csv", help="Print rows as CSV.")] = False,
    names: Annotated[bool, typer.Option("--names", help="List the metrics that there are.")] = False,
    catalogue: Annotated[bool, typer.Option("--catalogue", help="Say what each metric means and what a bad value looks like.")] = False,
    openmetrics: Annotated[bool, typer.Option("--openmetrics", help="Print the newest values as OpenMetrics text.")] = False,
    port: Annotated[Optional[int], typer.Option("--serve", metavar="PORT", min=0, max=65535, help="Serve them to Prometheus on 127.0.0.1; 0: any.")] = None,  # noqa: UP045, E501
    perfetto: Annotated[Optional[Path], typer.Option("--perfetto", metavar="FILE", help="Write the ranks' last spans for ui.perfetto.dev.")] = None,  # noqa: UP045
    tensorboard: Annotated[Optional[Path], typer.Option("--tensorboard", metavar="DIR", help="Write the metrics as TensorBoard event files.")] = None,  # noqa: UP045
    grafana: Annotated[Optional[Path], typer.Option("--grafana", metavar="FILE", help="Write a Grafana dashboard of the catalogue.")] = None,  # noqa: UP045
    send: Annotated[Optional[str], typer.Option("--send", metavar="|".join(_BRIDGES), help="Send the metrics (otel: the spans) there.")] = None,  # noqa: UP045
    runs_dir: Annotated[str, typer.Option("--runs-dir", help="Folder that holds the runs.")] = "runs",
    json: Json = False,
) -> None:
    """Ask a run what it measured: it may be running, have crashed, or be a copy that cannot be written to."""
    from penstock.config import UserError

    if catalogue or grafana:
        _catalogue(_kinds(run, runs_dir), query or [], grafana, json)
        return
    if run is None:
        raise UserError("which run? Give its folder or name, or 'last'; only --catalogue and --grafana need none")
    from penstock.monitor.series import Series
    from penstock.store import find_run

    found = find_run(run, runs_dir)
    series = Series(found.path / "metrics", _kinds(run, runs_dir))
    window = _bound(since, "--since"), _bound(until, "--until")
    if names:
        all_ = series.find(query or ["*"])
        output.show({"run": str(found.path), "step": series.last_row()[0], "names": all_}, json, lambda _: "\n".join(all_))
    elif openmetrics or port is not None:
        _openmetrics(found, series, port)
    elif perfetto or send == "otel":
        _spans(found, perfetto, json)
    else:
        courses = series.courses(series.find(query or ["*"]), *window, points or _points(csv or json, send, tensorboard))
        if send or tensorboard:
            _send(found, courses, send, tensorboard, json)
        else:
            _print(found, series, courses, csv, json)
    for damage in series.damage:
        print(f"warning: {damage}", file=sys.stderr)
    if series.lost:
        print(f"warning: {series.lost} rows of ranks are missing: a disk did not take them, or they are damaged", file=sys.stderr)


def _kinds(run: str | None, runs_dir: str) -> Kinds:
    """The run's own catalogue, or this version's."""
    from penstock.monitor.series import Kinds, read_kinds
    from penstock.monitor.series.catalogue import CATALOGUE
    from penstock.store import find_run

    own = read_kinds(find_run(run, runs_dir).path / "metrics") if run else None
    return own or Kinds(CATALOGUE)


def _catalogue(kinds: Kinds, globs: list[str], grafana: Path | None, json: bool) -> None:
    from dataclasses import asdict
    from fnmatch import fnmatchcase

    from penstock.config import disk_errors
    from penstock.monitor.export.grafana import dashboard
    from penstock.monitor.export.table import catalogue_lines

    if grafana:
        with disk_errors(grafana.parent, "writing the dashboard"):
            grafana.write_text(json_.dumps(dashboard(kinds.all), indent=1) + "\n", encoding="utf-8")
        output.show({"grafana": str(grafana)}, json, lambda _: f"wrote {grafana}; import it in Grafana")
        return
    kept = [kind for kind in kinds.all if not globs or any(fnmatchcase(kind.pattern, glob) for glob in globs)]
    output.show({"catalogue": [asdict(kind) for kind in kept]}, json, lambda _: "\n".join(catalogue_lines(kept)))


def _print(run: Run, series: Series, courses: Any, csv: bool, json: bool) -> None:
    from penstock.monitor.export.table import csv_lines, json_pieces, table_lines

    if json:
        for piece in json_pieces(str(run.path), courses, series):
            print(piece, end="")
        print(flush=True)
        return
    for line in csv_lines(courses) if csv else table_lines(courses):
        print(line)


def _openmetrics(run: Run, series: Series, port: int | None) -> None:
    """Print the newest values, or serve them until interrupted."""
    from penstock.monitor.export import exposition, latest, serve
    from penstock.monitor.series import Series

    if port is None:
        print(exposition(run.name, latest(series)), end="", flush=True)
        return

    def scrape(open_metrics: bool) -> str:
        now = Series(series.folder, series.kinds)
        try:
            return exposition(run.name, latest(now), open_metrics)
        finally:
            now.close()

    server = serve(port, scrape)
    print(f"serving {run.name} at http://127.0.0.1:{server.server_address[1]}/metrics until interrupted", file=sys.stderr, flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        server.shutdown()


def _spans(run: Run, file: Path | None, json: bool) -> None:
    from penstock.config import disk_errors
    from penstock.monitor.export import read_spans

    spans, damage = read_spans(run.path / "metrics")
    for text in damage:
        print(f"warning: {text}", file=sys.stderr)
    if file is None:
        from penstock.monitor.export.otel import send_spans

        count = send_spans(run.name, spans)
        output.show({"run": str(run.path), "spans": count}, json, lambda r: f"sent {r['spans']} spans")
        return
    from penstock.monitor.export.perfetto import trace

    with disk_errors(file.parent, "writing the trace"), open(file, "wb") as out:
        out.writelines(trace(run.name, spans))
    output.show({"run": str(run.path), "spans": len(spans), "file": str(file)}, json, lambda r: f"wrote {r['spans']} spans to {r['file']}")


def _send(run: Run, courses: Any, to: str | None, folder: Path | None, json: bool) -> None:
    import importlib

    from penstock.config import UserError, flat

    if folder is not None:
        from penstock.monitor.export.tensorboard import write_events

        steps = write_events(folder, courses)
        output.show({"run": str(run.path), "steps": steps, "folder": str(folder)}, json, lambda r: f"wrote {r['steps']} steps to {r['folder']}")
        return
    if to not in _BRIDGES:
        raise UserError(f"--send {to} is not known; there are {', '.join(_BRIDGES)}")
    steps = importlib.import_module(f"penstock.monitor.export.{to}").send(run.name, flat(run.config()), courses)
    output.show({"run": str(run.path), "steps": steps, "to": to}, json, lambda r: f"sent {r['steps']} steps to {r['to']}")


def _points(rows: bool, send: str | None, folder: Path | None) -> int:
    """How many rows where the user did not say: all that are printed one by one, fewer elsewhere."""
    return SENT_POINTS if send or folder else 0 if rows else TABLE_POINTS


def _bound(text: str | None, option: str) -> Bound:
    from penstock.config import UserError
    from penstock.monitor.series import Bound

    if text is None:
        return Bound()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return Bound(seconds=float(match[1]) * _SECONDS[match[2]])
    if not text.isdecimal():
        raise UserError(f"{option} {text} is neither a step nor a time; give a step such as 200, or a time such as 30s, 10m, 2h, 1d")
    return Bound(step=int(text))
