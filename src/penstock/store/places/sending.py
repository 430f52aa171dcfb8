"""Sending a run from one folder to another, either of which may be a bucket: `push` and `pull`.

What is there already is not sent again: packs never change and have names of their own, so one that is there in its full size is the one. Packs go
first, then the receiving side's copies are read back and every chunk of a new snapshot is held against its digest, then manifests, then the history.
So wherever this is stopped, there is a store of complete snapshots, and the next attempt goes on; what is damaged here is not passed on as whole.
Nothing is removed there, and a history that is another run's, or further on, is not replaced.

Cost: what is new goes over the network once each way, as a receiver is only believed when it has been read. Memory: a block, and a chain of cells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.config import UserError, disk_errors
from penstock.store.cells.chunks import Damaged
from penstock.store.cells.forest import Forest
from penstock.store.cells.packs import PACKS, pack_file
from penstock.store.places.folder import PARTIAL, Folder, LocalFolder
from penstock.store.places.locks import all_in_use, writer_lock
from penstock.store.snapshots.index import indexed
from penstock.store.snapshots.manifest import Manifest, Snapshot, list_snapshots, read_manifest, write_manifest
from penstock.store.snapshots.retention import PINS
from penstock.store.story.history import FILE as HISTORY
from penstock.store.story.history import HEAD, NO_HEAD, head_of

BLOCK = 8 << 20
#: Snapshots whose packs are sent, verified and named together.
BATCH = 8
#: The run's files beside its store; those up to SMALL are always sent, larger ones when their size differs.
FILES, FOLDERS, SMALL = ("run.json", "config.toml", "summary.json", "report.html", PINS), ("tokenizer", "code", "metrics", "events"), 1 << 20


@dataclass
class Sent:
    """What a transfer did."""

    snapshots: int = 0
    there_already: int = 0
    packs: int = 0
    files: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)  #: why a snapshot was not sent

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def transfer(source: Folder, target: Folder) -> Sent:
    """Make everything of the run in `source` be in `target` too; meanwhile nothing is removed from `source`.

    Raises `UserError` when `source` has no run, `target` has another one, is further on, or is being written, or when either side refuses.
    """
    if not source.has("run.json"):
        raise UserError(f"{source.label} has no run")
    with all_in_use(source), _only_writer(target):
        head, history = _history(source)  # before the snapshots, so that it tells of none that is not sent
        _check_same_run(source, history, target)
        work = _Transfer(source, target)
        missing = [snapshot for snapshot in work.snapshots.values() if snapshot.file not in work.there]
        for first in range(0, len(missing), BATCH):
            work.send(missing[first : first + BATCH])
        work.send_files()
        if history:
            _send_history(history, head, target)
    return work.sent


class _Transfer:
    """A transfer under way."""

    def __init__(self, source: Folder, target: Folder) -> None:
        self.source, self.target = source, target
        self.snapshots = {snapshot.id: snapshot for snapshot in list_snapshots(source)}
        self.packs = target.sizes(PACKS)
        #: Files of the manifests that are there.
        self.there = _complete(target, self.packs)
        self.sent = Sent(there_already=len(self.there))

    def send(self, batch: list[Snapshot]) -> None:
        """Send snapshots' packs, read them back, and name the snapshots that are whole."""
        forest, trusted, manifests = Forest(), set[int](), []
        fresh: set[str] = set()
        for snapshot in batch:
            try:
                manifest = read_manifest(snapshot)
                fresh |= self._send_packs(manifest)
            except Damaged as error:
                self.sent.damaged.append(str(error))
                continue
            manifests.append((manifest, set(forest.add(manifest.chunks))))
            trusted |= self._verified_before(manifest, forest)
        wanted = {number for _, numbers in manifests for number in numbers} - trusted
        bad = forest.check(self.target, wanted)
        if stale := {error.file for error in bad.values()} - fresh:  # left by another attempt
            fresh |= {file for file in stale if self._copy(file)}
            bad = forest.check(self.target, wanted)
        for manifest, numbers in manifests:
            errors = [str(bad[number]) for number in numbers if number in bad]
            if errors:
                self.sent.damaged.append(f"step {manifest.step}: {errors[0]}")
            else:
                self.there.add(write_manifest(self.target, manifest).file)
                self.sent.snapshots += 1
        for file in {error.file for error in bad.values()} & fresh:
            self.target.remove(file)  # so that a mended one is sent
            self.packs.pop(file, None)

    def _verified_before(self, manifest: Manifest, forest: Forest) -> set[int]:
        """The chunks of a manifest's parent, if that is there: they were held against their digests when it was sent."""
        parent = self.snapshots.get((manifest.parent or "")[:12])
        if parent is None or parent.file not in self.there:
            return set()
        try:
            return set(forest.add(read_manifest(parent).chunks))
        except Damaged:
            return set()

    def _send_packs(self, manifest: Manifest) -> set[str]:
        """Send the packs that are not there in full; returns their files."""
        files = [pack_file(pack) for pack in manifest.packs]
        try:
            return {file for file in files if self.packs.get(file) != self.source.size(file) and self._copy(file)}
        except FileNotFoundError as error:
            raise Damaged(f"step {manifest.step}: a pack is missing in {self.source.label} ({error})", manifest.file) from None

    def _copy(self, file: str) -> bool:
        """Send a file in blocks."""
        size, start = self.source.size(file), 0
        with self.target.create(file) as stream:
            while start < size:
                block = self.source.read(file, start, min(BLOCK, size - start))
                if not block:
                    raise UserError(f"{file} in {self.source.label} became shorter while it was sent; try again")
                stream.write(block)
                start += len(block)
        self.packs[file] = size
        self.sent.packs += file.startswith(f"{PACKS}/")
        self.sent.files += 1
        self.sent.bytes += size
        return True

    def send_files(self) -> None:
        """Send what else belongs to the run."""
        for prefix in ("", *FOLDERS):
            theirs = self.target.sizes(prefix)
            for name, size in self.source.sizes(prefix).items():
                wanted = name in FILES if not prefix else not name.endswith(PARTIAL)
                if wanted and (size <= SMALL or theirs.get(name) != size):
                    self._copy(name)


def _send_history(history: bytes, head: bytes, target: Folder) -> None:
    """The lines before their head, which says how many there should be: it may be behind them, but neither ahead nor missing."""
    if not target.has(HEAD):
        target.write(HEAD, json.dumps(head_of(*NO_HEAD)).encode())
    target.write(HISTORY, history)
    target.write(HEAD, head)


@contextmanager
def _only_writer(target: Folder) -> Iterator[None]:
    if not isinstance(target, LocalFolder):
        yield
        return
    with disk_errors(target.path, "making it"):
        target.path.mkdir(parents=True, exist_ok=True)
    with writer_lock(target.path):
        yield


def _history(folder: Folder) -> tuple[bytes, bytes]:
    """Head and whole lines of a history; the head first, so that it is not ahead of them."""
    head, lines = (folder.read(name) if folder.has(name) else b"" for name in (HEAD, HISTORY))
    return head, lines[: lines.rfind(b"\n") + 1]


def _check_same_run(source: Folder, history: bytes, target: Folder) -> None:
    theirs = _history(target)[1]
    born = {_born(folder) for folder in (source, target) if folder.has("run.json")}
    if len(born) > 1 or not (history.startswith(theirs) or theirs.startswith(history)):
        raise UserError(f"{target.label} holds another run, or one that went on in another way than {source.label}; choose another place")
    if len(theirs) > len(history):
        raise UserError(f"{target.label} is further on than {source.label}; nothing was sent")


def _born(folder: Folder) -> str:
    try:
        return str(json.loads(folder.read("run.json"))["created"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"run.json in {folder.label} is damaged; restore it") from None


def _complete(target: Folder, packs: dict[str, int]) -> set[str]:
    """Manifests that are there; of those in a local folder, with all their packs, so that what is gone is sent again."""
    if not isinstance(target, LocalFolder):
        return {snapshot.file for snapshot in list_snapshots(target)}
    return {row.file for row in indexed(target).rows if all(packs.get(pack_file(pack), 0) >= end for pack, end in row.ends.items())}
