"""`penstock alerts`: what is wrong with a run, or was; acknowledged or silenced here. As in `app.py`, commands parse, call and print."""

from __future__ import annotations

import getpass
import json as json_
import time
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from penstock.cli import output
from penstock.cli.options import Json, RunName, RunsDir

if TYPE_CHECKING:
    from penstock.monitor.alerts import Alert, Book
    from penstock.store import Run

#: Seconds between two looks at the book.
LOOK_S = 0.3


def alerts(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", help="Print alerts as they come, until the run ends (with --json: one object a line).")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    ack: Annotated[Optional[str], typer.Option("--ack", metavar="ID", help="Acknowledge an alert: somebody knows.")] = None,  # noqa: UP045
    silence: Annotated[Optional[str], typer.Option("--silence", metavar="KIND", help="Tell nobody of alerts of a kind any more.")] = None,  # noqa: UP045
    hours: Annotated[float, typer.Option("--hours", min=0.0, help="Silence it for so many hours; 0: for good.")] = 0.0,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Tell what is wrong with a run: what, where, since when, how sure, why, and what to do."""
    from penstock.config import disk_errors
    from penstock.monitor.alerts import as_text, read_alerts
    from penstock.monitor.overview import watched_to
    from penstock.store import find_run

    found = find_run(run, runs_dir)
    book = read_alerts(found.path)
    if ack is not None or silence is not None:
        with disk_errors(found.path, "writing the book of alerts"):
            _say(book, ack, silence, hours)
    if follow:
        _follow(found, book, json)
        return
    shown = [alert for alert in book.alerts.values() if all_ or alert.state != "resolved"]
    resolved = sum(alert.state == "resolved" for alert in book.alerts.values())
    seen = watched_to(found.path / "metrics")
    told = {"run": str(found.path), "alerts": [alert.as_dict() for alert in shown], "resolved": resolved, "silenced": sorted(book.silenced)}
    rest = "" if all_ or not resolved else f"{resolved} resolved; --all shows them"
    none = f"{found.path} has no {'' if all_ else 'open '}alert; {'no monitor has watched it' if seen is None else f'watched to step {seen}'}"
    text = "\n\n".join([as_text(alert) for alert in shown] or [none])
    output.show(told | {"watched_to": seen, "damaged": book.damaged}, json, lambda _: text + (f"\n\n{rest}" if rest else ""))


def _say(book: Book, ack: str | None, silence: str | None, hours: float) -> None:
    """Write down that somebody knows of an alert, or wants to hear no more of a kind."""
    from penstock.config import UserError, nearest
    from penstock.monitor.alerts import KINDS

    if ack is not None:
        run = book.path.parent
        if ack not in book.alerts:
            raise UserError(f"{run} has no alert {ack!r}{nearest(ack, book.alerts)}; `penstock alerts {run} --all` lists them")
        book.acknowledge(ack, getpass.getuser())
    if silence is not None:
        if silence not in KINDS:
            raise UserError(f"there is no kind of alert {silence!r}{nearest(silence, KINDS)}; there are {', '.join(KINDS)}")
        book.silence(silence, getpass.getuser(), 3600.0 * hours if hours else None)


def _follow(run: Run, book: Book, json: bool) -> None:
    """Print what stands in the book and what comes, until nothing writes the run any more."""
    from penstock.monitor.alerts import as_text
    from penstock.store import run_state

    told: dict[str, Alert] = {}
    last = False
    while True:
        for id, alert in book.alerts.items():
            if told.get(id) != alert:
                told[id] = alert
                print(json_.dumps(alert.as_dict()) if json else f"{as_text(alert)}\n", flush=True)
        if last:
            return
        last = run_state(run) != "running"  # then once more, for what came meanwhile
        time.sleep(LOOK_S)
        book.refresh()
