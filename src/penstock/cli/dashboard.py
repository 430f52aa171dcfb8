"""`penstock dashboard` and `penstock report`: the page of all runs, live, and one run's page in a file.

As in `app.py`, commands parse, call and print.
"""

from __future__ import annotations

import json as json_
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from penstock.cli import output
from penstock.cli.options import Json, RunName, RunsDir

if TYPE_CHECKING:
    from penstock.dashboard.place import Place


def dashboard(
    runs_dir: Annotated[Path, typer.Argument(metavar="[RUNS_DIR]", help="Folder that holds the runs.")] = Path("runs"),
    host: Annotated[str, typer.Option("--host", help="Address to listen at; beyond 127.0.0.1 looking needs the token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port, or the next that is free; 0: any.")] = 8080,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token; none: $PENSTOCK_DASHBOARD_TOKEN, or a new one.")
    ] = None,
    allow_host: Annotated[Optional[list[str]], typer.Option("--allow-host", metavar="NAME", help="Another name that it may be asked by.")] = None,  # noqa: UP045
    background: Annotated[bool, typer.Option("--background", help="End when nobody looks and no run trains any more.")] = False,
    json: Json = False,
) -> None:
    """Serve the page of all runs in a folder, live and past, until it is interrupted."""
    from penstock.dashboard.serve import Wanted, serve

    def tell(place: Place) -> None:
        if place.busy is not None:
            print(f"port {place.busy} is in use; taking {place.port}", file=sys.stderr)
        if json:
            print(json_.dumps({"url": place.url, "host": place.host, "port": place.port, "runs_dir": str(runs_dir)}), flush=True)
        shown = place.link if sys.stderr.isatty() else f"{place.url}  (the token is in {runs_dir}/.dashboard.json)"
        print(f"{shown}\nall runs below {runs_dir}; end it with Ctrl-C", file=sys.stderr, flush=True)

    names = tuple(name.lower() for name in allow_host or [])
    serve(Wanted(runs_dir, host, port, token_file, names, background), tell)


def report(
    run: RunName,
    out: Annotated[Optional[Path], typer.Option("--out", help="File to write; none: <run>.html here.")] = None,  # noqa: UP045
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Write a run's page as it is now into one HTML file, to look at without a server or to send to somebody."""
    from penstock.dashboard.frozen import freeze
    from penstock.store import find_run

    made = freeze(find_run(run, runs_dir), out)
    thinned = f"; {made['thinned']} of {made['metrics']} metrics are thinned to {made['points']} points" if made["thinned"] else ""
    output.show(made, json, lambda r: f"wrote {r['file']}, {r['bytes'] / 1e6:.1f} MB{thinned}")
