"""`penstock snapshot` and `penstock stop`: a running run asked to save now, or to end after its next step.

As in `app.py`, commands parse, call and print.
"""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli import output
from penstock.cli.options import Json, RunName, RunsDir

Wait = Annotated[float, typer.Option("--wait", min=0.1, help="Longest wait for the run's answer, seconds.")]


def snapshot(run: RunName, wait: Wait = 120.0, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """Have a running run save its state after its next step."""
    _ask(run, "snapshot", wait, runs_dir, json)


def stop(run: RunName, wait: Wait = 120.0, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """Have a running run end after its next step, saving; `penstock resume` goes on with it."""
    _ask(run, "stop", wait, runs_dir, json)


def _ask(run: str, kind: str, wait: float, runs_dir: str, json: bool) -> None:
    from penstock.config import UserError
    from penstock.store import find_run

    found = find_run(run, runs_dir)
    from penstock.engine.requests.commands import send

    answer = send(found.path, kind, {}, wait)
    if answer.state == "refused":
        raise UserError(answer.text)
    output.show({"run": str(found.path), "step": answer.step, "text": answer.text}, json, lambda told: f"step {told['step']}: {told['text']}")
