"""`penstock change`: a running run's settings changed between two steps. As in `app.py`, commands parse, call and print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import output
from penstock.cli.options import Json, RunName, RunsDir, Sets

if TYPE_CHECKING:
    from penstock.store import Run


def change(
    run: RunName,
    sets: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change, and what it costs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it even if something of the state is lost.")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0.1, help="Longest wait for the run's answer, seconds.")] = 120.0,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Change settings of a run while it trains, between two steps: rates, batch, layout, precision, or the structure of the model."""
    from penstock.config import UserError
    from penstock.config.load import parse_sets
    from penstock.store import find_run

    found, values = find_run(run, runs_dir), parse_sets(sets or [])
    if not values:
        raise UserError("say what is to change: penstock change RUN --set SECTION.KEY=VALUE")
    if not (dry_run or yes) and sys.stdin.isatty():
        yes = _agreed(found, values, wait)
    answer = _ask(found, values, wait, dry_run, yes)
    told = {"run": str(found.path), "dry_run": dry_run, "step": answer.step, "seconds": answer.seconds} | answer.data
    output.show(told, json, output.change_text)


def _ask(run: Run, values: dict[str, Any], wait: float, dry_run: bool, yes: bool) -> Any:
    from penstock.config import UserError
    from penstock.engine.requests.commands import send

    answer = send(run.path, "change", {"values": values, "dry_run": dry_run, "accept_loss": yes}, wait)
    if answer.state == "refused":
        raise UserError(answer.text)
    return answer


def _agreed(run: Run, values: dict[str, Any], wait: float) -> bool:
    """Whether the user agrees to what a change loses; true if that is nothing."""
    loses = _ask(run, values, wait, dry_run=True, yes=False).data["loses"]
    return not loses or typer.confirm(f"{'; '.join(loses)}. Change it all the same?", err=True, abort=True)
