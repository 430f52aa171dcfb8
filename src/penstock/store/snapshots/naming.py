"""Snapshots by the names that people give them.

    RUN            the newest          RUN@STEP       the newest of that step
    RUN@ID         the one whose id begins so (4 digits or more)
    path           of a manifest's file

RUN is a run's folder, its name, or `last`. A step wins over an id that looks like one.
"""

from __future__ import annotations

from pathlib import Path

from penstock.config import UserError
from penstock.store.places.folder import LocalFolder
from penstock.store.runs import Run, check_format, find_run
from penstock.store.snapshots.manifest import Snapshot, list_snapshots


def find_snapshot(name: str, runs_dir: str | Path = "runs") -> Snapshot:
    """The snapshot of a name; raises `UserError` that says which there are."""
    if name.endswith(".json") and Path(name).is_file():
        return _at_path(Path(name))
    run, _, which = name.rpartition("@")
    if not run or Path(name).is_dir():
        return newest_snapshot(find_run(name, runs_dir).path)
    folder = find_run(run, runs_dir).path
    snapshots = [newest_snapshot(folder), *list_snapshots(folder)]
    found = [snapshot for snapshot in snapshots if which.isdecimal() and snapshot.step == int(which)]
    found = found or [snapshot for snapshot in snapshots[1:] if len(which) >= 4 and snapshot.id.startswith(which.lower()[:12])]
    if not found:
        raise UserError(f"{folder} has no snapshot '{which}'; {_there_are(snapshots[1:])}")
    if len({snapshot.step for snapshot in found}) > 1:
        raise UserError(f"'{which}' begins the ids of {len(found)} snapshots of {folder}; give more digits")
    return found[-1]


def newest_snapshot(run: Path) -> Snapshot:
    """The newest snapshot of a run by its manifests' names; raises `UserError` if there is none, or only ones of an older format."""
    snapshots = list_snapshots(run)
    if snapshots:
        return snapshots[-1]
    check_format(Run(run))
    raise UserError(f"{run} has no snapshot yet; `penstock train` writes one every snapshot.every steps, and at its end")


def _at_path(path: Path) -> Snapshot:
    folder = LocalFolder(path.resolve().parent.parent)
    for snapshot in list_snapshots(folder):
        if snapshot.path == path.resolve():
            return snapshot
    raise UserError(f"{path} is not the manifest of a snapshot in a run's folder")


def _there_are(snapshots: list[Snapshot]) -> str:
    steps = [str(step) for step in sorted(snapshot.step for snapshot in snapshots)]
    return f"there are steps {', '.join(steps if len(steps) < 12 else [*steps[:4], '…', *steps[-4:]])}"
