"""An index over a run's manifests, so that ten thousand snapshots are listed without reading ten thousand files.

A row holds what listing and retention ask of a snapshot. The manifests are what counts: rows of files that are gone are dropped, files without a row
are read, and each row carries a digest of itself, so that one that the disk has changed is made again. An index that is missing, damaged, or of
another version is made anew from the files. Where it cannot be written (a disk that is read-only, a bucket) rows are made in memory.

Cost: one listing of the folder and one query; to make it anew, reading all manifests. SQLite does the rest, with no flush of its own, as nothing is
lost with it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import blake3

from penstock.store.cells.chunks import Damaged
from penstock.store.places.folder import Folder, LocalFolder
from penstock.store.snapshots.manifest import Manifest, Snapshot, list_snapshots, read_manifest

FILE = "index.sqlite"
VERSION = 1
_WAIT_S = 5.0


class Row(NamedTuple):
    """What the index knows of a snapshot. `packs` is JSON: by pack, the bytes of it that the snapshot needs to be there."""

    file: str
    id: str
    step: int
    parent: str | None
    created: str
    full: bool  #: whether it has no increments
    loss: float | None
    val_loss: float | None
    wall_s: float  #: seconds of training up to here
    state_bytes: int  #: of the tensors
    added_bytes: int  #: of payloads in the packs that were written for it
    stored_bytes: int  #: of all payloads that it needs
    tensors: int
    packs: str

    @property
    def ends(self) -> dict[str, int]:
        """By name of each pack, how many bytes it must have."""
        return json.loads(self.packs)


@dataclass(frozen=True)
class Indexed:
    """Snapshots whose manifests are whole, the newest last; and what is wrong with others, by file."""

    rows: list[Row]
    damaged: dict[str, str]


def indexed(folder: Folder | Path) -> Indexed:
    """The rows of all snapshots in a run's folder, brought up to date first."""
    folder = folder if isinstance(folder, Folder) else LocalFolder(folder)
    snapshots = list_snapshots(folder)
    if isinstance(folder, LocalFolder):
        for attempt in range(2):
            try:
                with _database(folder.path / FILE) as database:
                    return _refreshed(database, snapshots)
            except sqlite3.Error as error:
                if attempt or not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.OperationalError):
                    break
                with suppress(OSError):
                    (folder.path / FILE).unlink()
    with _database(":memory:") as database:
        return _refreshed(database, snapshots)


@contextmanager
def _database(path: Path | str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=_WAIT_S)) as database, database:
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA synchronous = OFF")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            database.execute("DROP TABLE IF EXISTS snapshots")
            database.execute("CREATE TABLE snapshots (file TEXT PRIMARY KEY, facts TEXT, packs TEXT, seal BLOB)")
            database.execute(f"PRAGMA user_version = {VERSION}")
        yield database


def _refreshed(database: sqlite3.Connection, snapshots: list[Snapshot]) -> Indexed:
    known = {row.file: row for row in _rows(database)}
    wanted = {snapshot.file for snapshot in snapshots}
    new, damaged = [], {}
    for snapshot in snapshots:
        if snapshot.file not in known:
            try:
                new.append(row_of(read_manifest(snapshot)))
            except Damaged as error:
                damaged[snapshot.file] = str(error)
    _replace(database, known.keys() - wanted, new)
    known |= {row.file: row for row in new}
    return Indexed([known[snapshot.file] for snapshot in snapshots if snapshot.file in known], damaged)


def _rows(database: sqlite3.Connection) -> Iterator[Row]:
    found = database.execute("SELECT facts, packs, seal FROM snapshots")
    whole = [(facts, packs) for facts, packs, seal in found if seal == _seal(facts, packs)]
    facts = json.loads(f"[{','.join(facts for facts, _ in whole)}]")
    return (Row._make([*fact, packs]) for fact, (_, packs) in zip(facts, whole))


def _replace(database: sqlite3.Connection, gone: Iterable[str], new: list[Row]) -> None:
    database.executemany("DELETE FROM snapshots WHERE file = ?", [(file,) for file in gone])
    rows = [(row.file, json.dumps(row[:-1]), row.packs) for row in new]
    marked = [(file, facts, packs, _seal(facts, packs)) for file, facts, packs in rows]
    database.executemany("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", marked)


def _seal(facts: str, packs: str) -> bytes:
    return blake3.blake3(f"{facts}\0{packs}".encode()).digest(length=8)


def row_of(manifest: Manifest) -> Row:
    """The row of a snapshot."""
    ends: dict[str, int] = {}
    for entry in manifest.chunks.values():
        ends[entry.pack] = max(ends.get(entry.pack, 0), entry.offset + entry.size)
    own = f"step-{manifest.step:08d}-"
    metrics = manifest.about.get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    return Row(
        manifest.file,
        manifest.id,
        manifest.step,
        manifest.parent,
        manifest.created,
        all(entry.base is None for entry in manifest.chunks.values()),
        as_number(metrics.get("loss")),
        as_number(metrics.get("val_loss")),
        as_number(manifest.numbers.get("wall_s")) or 0.0,
        sum(manifest.chunks[digest].content_bytes for tensor in manifest.tensors.values() for digest in tensor.cells),
        sum(entry.size for entry in manifest.chunks.values() if entry.pack.startswith(own)),
        sum(entry.size for entry in manifest.chunks.values()),
        len(manifest.tensors),
        json.dumps(ends),
    )


def as_number(value: Any) -> float | None:
    """A number that a file should hold; None for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
