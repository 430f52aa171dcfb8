"""What a run's snapshots can tell and become: `penstock runs diff`, `fork`, `samples`, `export`, `import`, and `penstock replay`.

As in `app.py`, commands parse, call and print.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from penstock.cli import output
from penstock.cli.options import Json, RunName, RunsDir, Sets, SnapName
from penstock.cli.runs import runs

NewRun = Annotated[Optional[Path], typer.Option("--run-dir", help="Folder of the new run.")]  # noqa: UP045
Partial = Annotated[bool, typer.Option("--partial", help="Keep what fits the settings and begin the rest anew, listed by name.")]


@runs.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="RUN (its newest snapshot), RUN@STEP, RUN@ID, or a manifest's path.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one, of this run or any other.")],
    code: Annotated[bool, typer.Option("--code", help="Print the difference of the code, too.")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Tell how far each tensor is apart, too, which reads them.")] = False,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Tell what differs between two snapshots: settings, code, machine, data, layout, metrics, weights."""
    from penstock.store import find_snapshot

    a, b = (find_snapshot(name, runs_dir) for name in (before, after))
    from penstock.engine import compare_snapshots

    told = compare_snapshots(a, b, code=code, weights=weights)
    output.show(told.as_dict(), json, lambda _: told.text())


@runs.command()
def fork(
    snap: SnapName,
    sets: Sets = None,
    run_dir: NewRun = None,
    nproc: Annotated[int, typer.Option("--nproc", help="Ranks that it will go on with, to see that the layout fits them.")] = 0,
    partial: Partial = False,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Make a new run from any snapshot, with any setting changed that its state allows; then `penstock resume` goes on with it."""
    from penstock.config.load import parse_sets
    from penstock.store import find_snapshot

    snapshot, values = find_snapshot(snap, runs_dir), parse_sets(sets or [])
    from penstock.engine import fork_run

    with output.progress_bar("preparing the corpus") as progress:
        made = fork_run(snapshot, values, run_dir, nproc, partial, _command(), progress)
    if made["untold"]:
        print(f"warning: {made['from']} could not be told of it: {made['untold']}", file=sys.stderr)
    output.show(made, json, lambda r: "\n".join([f"{r['run']}: step {r['step']} of {r['from']}{_packs(r)}", *_made(r)]))


@runs.command()
def samples(
    snap: SnapName,
    step: Annotated[Optional[int], typer.Option("--step", help="Only this step, with every excerpt.")] = None,  # noqa: UP045
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Tell which samples made a snapshot since the one before: documents, and bytes of them."""
    from penstock.store import find_snapshot

    snapshot = find_snapshot(snap, runs_dir)
    from penstock.engine import samples_of

    told = samples_of(snapshot, step)
    output.show(told.as_dict(), json, lambda _: told.text())


@runs.command("export")
def export(
    snap: SnapName,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    kind: Annotated[str, typer.Option("--format", help="dcp: torch's distributed checkpoint; or safetensors.")] = "dcp",
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Write a snapshot's whole state, optimizer included, for another library."""
    from penstock.store import find_snapshot

    snapshot = find_snapshot(snap, runs_dir)
    from penstock.engine import export_state

    made = export_state(snapshot, folder, kind)
    reader = "torch.distributed.checkpoint.load(tensors, checkpoint_id={})" if kind == "dcp" else "safetensors.torch.load_file of each file in {}"
    how = reader.format(repr(str(folder)))
    output.show(made, json, lambda r: f"wrote step {r['step']} of {r['run']}, {r['tensors']} tensors, to {r['folder']}; read it with {how}")


@runs.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="A torch distributed checkpoint, or safetensors, with our tensors' names.")],
    config: Annotated[Optional[str], typer.Argument(metavar="[CONFIG.toml]", help="Of what run it is, where the folder does not say.")] = None,  # noqa: UP045
    sets: Sets = None,
    run_dir: NewRun = None,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """Make a run of a state in another library's files; then `penstock resume` goes on with it."""
    from penstock.config.load import parse_sets
    from penstock.engine import import_state

    with output.progress_bar("preparing the corpus") as progress:
        made = import_state(source, config, parse_sets(sets or []), run_dir, partial, _command(), progress)
    output.show(made, json, lambda r: "\n".join([f"{r['run']}: step {r['step']} from {r['from']}, {r['tensors']} tensors", *_made(r)]))


def replay(
    run: RunName,
    begin: Annotated[str, typer.Option("--from", metavar="SNAP", help="Where to begin: a step or id of RUN, or a snapshot's name.")],
    end: Annotated[str, typer.Option("--to", metavar="SNAP", help="What should come out; none: the newest.")] = "",
    nproc: Annotated[int, typer.Option("--nproc", help="Ranks; 0: as many as it was, at every step.")] = 0,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Compute the steps between two snapshots again, and prove that the same weights come out; exit code 1 where they do not."""
    from penstock.store import find_run, find_snapshot

    path = find_run(run, runs_dir).path
    names = (name if "@" in name or name.endswith(".json") else f"{path}@{name}" if name else str(path) for name in (begin, end))
    a, b = (find_snapshot(name, runs_dir) for name in names)
    from penstock.engine import replay as replay_

    told = replay_(a, b, nproc)
    output.show(told.as_dict(), json, lambda _: told.text())
    if not told.equal:
        raise typer.Exit(1)


def _command() -> str:
    return shlex.join(["penstock", *sys.argv[1:]])


def _packs(made: dict[str, Any]) -> str:
    how = [f"{made[name]} packs {name}" for name in ("linked", "copied") if made[name]]
    return f", {' and '.join(how)}" if how else ""


def _made(made: dict[str, Any]) -> list[str]:
    """What was changed to make a run, and how to go on with it."""
    from penstock.store.story.diff_text import shown

    lines = [f"  {name}  {shown(before)} → {shown(after)}" for name, (before, after) in made["settings"].items()]
    lines += [f"  {what} {name}" for what, names in (("begins anew", made["anew"]), ("left out", made["left_out"])) for name in names]
    lines += [f"  grown: {what}" for what in made.get("grown", [])]
    ranks = f" --nproc {made['nproc']}" if made.get("nproc", 0) > 1 else ""
    further = "" if made["steps"] > made["step"] else f" --set train.steps={made['step'] + made['steps']}"
    return [*lines, f"go on with: penstock resume {made['run']}{ranks}{further}"]
