"""`penstock watch`: a run in the terminal, live. As in `app.py`, commands parse, call and print."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import output
from penstock.cli.options import Json, RunName, RunsDir

if TYPE_CHECKING:
    from penstock.monitor.overview import Overview
    from penstock.store import Run


def watch(
    run: RunName,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between two frames.")] = 1.0,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Watch a run: healthy or not, where it is and how fast, its main metrics, its open alerts with cause and advice."""
    from rich.console import Console
    from rich.live import Live

    from penstock.monitor.screen import frame
    from penstock.store import find_run

    found, console = find_run(run, runs_dir), Console()
    now = _look(found)
    if json or once or not console.is_terminal or now.state != "running":
        output.show(now.as_dict(), True, str) if json else console.print(frame(now, console.width))
        return
    with Live(frame(now, console.width), console=console, auto_refresh=False) as live:
        while now.state == "running":
            time.sleep(every)
            now = _look(found)
            live.update(frame(now, console.width), refresh=True)


def _look(run: Run) -> Overview:
    from penstock.monitor.overview import overview
    from penstock.store import run_state

    return overview(run.path, run_state(run), run.config().train.steps)
