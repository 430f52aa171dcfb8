"""`penstock runs`: the runs here, and what is stored of one. As in `app.py`, commands parse, call and print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from penstock.cli import output
from penstock.cli.options import Json, RunName, RunsDir, SnapName

if TYPE_CHECKING:
    from penstock.store import Folder

runs = typer.Typer(name="runs", help="List the runs; or look into one, verify it, send it elsewhere.", invoke_without_command=True)

Url = Annotated[str, typer.Argument(metavar="URL", help="A folder, or any URL that fsspec opens, such as s3://bucket/runs/mine.")]


@runs.callback()
def list_(context: typer.Context, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """List the runs; or look into one, verify it, send it elsewhere."""
    if context.invoked_subcommand is not None:
        from penstock.config import UserError

        if json or runs_dir != "runs":
            raise UserError(f"--json and --runs-dir belong behind the command: penstock runs {context.invoked_subcommand} … --json")
        return
    from penstock.store import list_runs

    rows = [output.run_row(run) for run in list_runs(runs_dir)]
    output.show({"runs": rows}, json, lambda _: output.run_table(rows, runs_dir))


@runs.command()
def log(run: RunName, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """Tell a run's story, newest first: snapshots as a tree, and what happened between them."""
    from penstock.cli.timeline import timeline_text
    from penstock.store import find_run, run_timeline

    found = find_run(run, runs_dir)
    told, row = run_timeline(found.path), output.run_row(found)
    output.show(row | told.as_dict(), json, lambda _: timeline_text(row, told))


@runs.command()
def show(snap: SnapName, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """Show a snapshot and how its run stands: what it holds, and what made it."""
    from penstock.cli.snapshot import describe, snapshot_text

    described = describe(snap, runs_dir)
    output.show(described, json, snapshot_text)


@runs.command()
def verify(run: RunName, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """Hold every manifest, pack, chunk and event of a run (or of a URL) against its digests; exit code 1 if any is damaged."""
    from penstock.cli.snapshot import verified_text
    from penstock.store import find_run, open_folder, verify_run

    folder = open_folder(run if "://" in run else find_run(run, runs_dir).path)
    result = verify_run(folder)
    output.show({"run": folder.label} | result.as_dict(), json, verified_text)
    if result.damage:
        raise typer.Exit(1)


@runs.command()
def gc(
    run: RunName,
    keep: Annotated[Optional[int], typer.Option("--keep", min=0, help="Newest snapshots to keep; 0: all; none: as the run's settings.")] = None,  # noqa: UP045
    keep_every: Annotated[Optional[int], typer.Option("--keep-every", min=0, help="Keep steps divisible by this too.")] = None,  # noqa: UP045
    keep_hours: Annotated[Optional[float], typer.Option("--keep-hours", min=0, help="Keep the first of every so many hours of training too.")] = None,  # noqa: UP045
    keep_best: Annotated[Optional[int], typer.Option("--keep-best", min=0, help="Keep so many of the lowest validation loss too.")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Remove snapshots that need not be kept, and what nothing needs any more."""
    from penstock.cli.snapshot import collected_text
    from penstock.store import collect, find_run, policy_of

    found = find_run(run, runs_dir)
    policy = policy_of(found.config(), keep=keep, keep_every=keep_every, keep_hours=keep_hours, keep_best=keep_best)
    result = collect(found.path, policy, dry_run)
    output.show({"run": str(found.path)} | result.as_dict(), json, collected_text)


@runs.command()
def pin(snap: SnapName, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """Keep a snapshot, whatever the policy says."""
    _pin(snap, True, runs_dir, json)


@runs.command()
def unpin(snap: SnapName, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """Let a snapshot go when the policy says so."""
    _pin(snap, False, runs_dir, json)


@runs.command()
def push(run: RunName, url: Url, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """Send a run to a bucket or another folder; what is there is not sent again."""
    from penstock.store import find_run, open_folder

    _send(open_folder(find_run(run, runs_dir).path), open_folder(url), json)


@runs.command()
def pull(
    url: Url,
    folder: Annotated[Optional[Path], typer.Argument(metavar="[RUN]", help="Folder of the run here; none: runs/<its name>.")] = None,  # noqa: UP045
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Bring a run here from a bucket or another folder, or what it has more than ours."""
    from penstock.store import open_folder

    source = open_folder(url)
    _send(source, open_folder(folder or Path(runs_dir) / source.label.rstrip("/").rpartition("/")[2]), json)


def _pin(snap: str, keep: bool, runs_dir: str, json: bool) -> None:
    from penstock.store import find_snapshot, pin

    snapshot = find_snapshot(snap, runs_dir)
    pin(snapshot, keep)
    what = {"run": snapshot.folder.label, "id": snapshot.id, "step": snapshot.step, "pinned": keep}
    how = "stays, whatever the policy says" if keep else "is no longer pinned"
    output.show(what, json, lambda r: f"step {r['step']} ({r['id']}) of {r['run']} {how}")


def _send(source: Folder, target: Folder, json: bool) -> None:
    from penstock.cli.snapshot import sent_text
    from penstock.store import transfer

    sent = transfer(source, target)
    output.show({"from": source.label, "to": target.label} | sent.as_dict(), json, sent_text)
    if sent.damaged:
        raise typer.Exit(1)
