"""Whether a run's store is what it was: every manifest, pack and chunk, the run's other files, and the chain of its history.

Each chunk is decoded and held against its digest, once (`cells/forest.py`). What is damaged is named by file, with the steps whose snapshots it takes
with it; so is what still loads. What is only unusual (a line that a crash tore, a pack that no snapshot needs) is noted, and is no damage.
Cost: reading all of it twice, and decoding it.
"""

from __future__ import annotations

import json
import tomllib
from array import array
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.store.cells.chunks import ChunkEntry, Damaged
from penstock.store.cells.forest import Forest
from penstock.store.cells.packs import PACKS, pack_file, read_pack
from penstock.store.places.folder import Folder
from penstock.store.snapshots.manifest import SNAPSHOTS, Snapshot, list_snapshots, manifest_file, read_manifest
from penstock.store.snapshots.retention import PINS
from penstock.store.story.code import FOLDER as CODE
from penstock.store.story.code import diffs_of, is_diff
from penstock.store.story.history import FILE, History, read_history


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was written, what is wrong, and the steps whose snapshots do not load for it."""

    file: str
    what: str
    steps: list[int] = field(default_factory=list)


@dataclass
class Verified:
    """What a store was found to be."""

    snapshots: int = 0
    intact: list[dict[str, Any]] = field(default_factory=list)  #: id and step of those that load, the newest last
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    events: int = 0
    chunks: int = 0
    bytes: int = 0  #: of their payloads

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"damaged": bool(self.damage), "newest_intact": self.intact[-1] if self.intact else None} | asdict(self)


@dataclass(frozen=True)
class _Facts:
    """What is remembered of a manifest that is whole."""

    snapshot: Snapshot
    id: str
    chunks: array[int]
    head: Any  #: its `about.history`
    diffs: list[str]  #: files of the code's changes that it names


def verify_run(folder: Folder) -> Verified:
    """Hold everything in a run's folder against its digests."""
    result, forest, found = Verified(), Forest(), []
    for snapshot in list_snapshots(folder):
        result.snapshots += 1
        try:
            manifest = read_manifest(snapshot)
            found.append(_Facts(snapshot, manifest.id, forest.add(manifest.chunks), manifest.about.get("history"), diffs_of(manifest.about)))
        except Damaged as error:
            result.damage.append(Damage(snapshot.file, str(error), [snapshot.step]))
    result.chunks, result.bytes = len(forest.chunks), sum(entry.size for _, entry, _ in forest.chunks)
    _check_chunks(folder, forest, found, result)
    _check_packs(folder, forest, result)
    _check_history(read_history(folder), found, result)
    _check_files(folder, result)
    _check_code(folder, found, result)
    return result


def _check_chunks(folder: Folder, forest: Forest, found: list[_Facts], result: Verified) -> None:
    bad = forest.check(folder)
    steps: dict[str, set[int]] = defaultdict(set)
    for facts in found:
        errors = {bad[number].file for number in facts.chunks if number in bad}
        if not errors:
            result.intact.append({"id": facts.id, "step": facts.snapshot.step})
        for file in errors:
            steps[file].add(facts.snapshot.step)
    messages = {error.file: str(error) for error in bad.values()}
    result.damage += [Damage(file, messages[file], sorted(steps[file])) for file in sorted(steps)]


def _check_packs(folder: Folder, forest: Forest, result: Verified) -> None:
    """The packs' own lists against the manifests'; a pack that is missing has been named for its chunks."""
    named: dict[str, list[tuple[str, ChunkEntry]]] = defaultdict(list)
    for digest, entry, _ in forest.chunks:
        named[entry.pack].append((digest, entry))
    files, told = folder.sizes(PACKS), {damage.file for damage in result.damage}
    for pack, entries in sorted(named.items()):
        if pack_file(pack) in files:
            try:
                listed = read_pack(folder, pack, whole=True)
                wrong = [digest for digest, entry in entries if listed.get(digest) != entry]
                if wrong:
                    result.damage.append(Damage(pack_file(pack), f"it does not list chunk {wrong[0][:12]} as a manifest does"))
            except Damaged as error:
                result.damage += [Damage(error.file, str(error))] if error.file not in told else []
    unnamed = {name: size for name, size in files.items() if name.removeprefix(f"{PACKS}/") not in named}
    if unnamed:
        result.notes.append(f"{len(unnamed)} files in {PACKS}/ that no snapshot needs, {sum(unnamed.values()):,} bytes; gc removes them")
    known = {snapshot.file for snapshot in list_snapshots(folder)}
    strangers = [name for name in folder.names(SNAPSHOTS) if name not in known]
    result.notes += [f"{name} is not a manifest" for name in strangers]


def _check_history(history: History, found: list[_Facts], result: Verified) -> None:
    result.events = len(history.events)
    result.notes += [history.torn] if history.torn else []
    result.damage += [Damage(FILE, what) for what in history.damage]
    hashes = {event.seq: event.hash for event in history.events}
    for facts in found:
        head = facts.head if isinstance(facts.head, dict) else {}
        seq, sealed = head.get("seq"), head.get("hash")
        if isinstance(seq, int) and hashes.get(seq, sealed) != sealed:
            result.damage.append(Damage(FILE, f"line {seq} is not the one after which the snapshot of step {facts.snapshot.step} was written"))
    _check_snapshots_told(history, {facts.snapshot.file for facts in found} | {damage.file for damage in result.damage}, result)


def _check_snapshots_told(history: History, here: set[str], result: Verified) -> None:
    """Every snapshot that the history tells of is here, if only damaged, or was dropped."""
    dropped = history.dropped
    for event in history.events:
        id = str(event.data.get("id"))
        file = manifest_file(event.step or 0, id)
        if event.kind == "snapshot" and id not in dropped and file not in here:
            result.damage.append(Damage(file, f"the snapshot of step {event.step} is gone, and the history does not say that it was dropped"))


def _check_files(folder: Folder, result: Verified) -> None:
    """The run's other files, as far as the store knows them."""
    for name, read in (("run.json", json.loads), ("summary.json", json.loads), ("config.toml", tomllib.loads), (PINS, json.loads)):
        try:
            content = read(folder.read(name).decode()) if folder.has(name) else {}
        except (OSError, ValueError, RecursionError) as error:
            result.damage.append(Damage(name, f"it cannot be read: {error}"))
            continue
        if name == PINS:
            ids = {snapshot.id for snapshot in list_snapshots(folder)}
            gone = [str(pin)[:12] for pin in _list(content) if str(pin)[:12] not in ids]
            result.damage += [Damage(name, f"the pinned snapshot {id} is not there") for id in gone]


def _check_code(folder: Folder, found: list[_Facts], result: Verified) -> None:
    """The code's uncommitted changes against the digests that they are named by."""
    here = folder.names(CODE)
    result.damage += [Damage(name, "its content has another digest than its name") for name in here if not is_diff(name, folder.read(name))]
    for name in sorted({name for facts in found for name in facts.diffs} - set(here)):
        result.damage.append(Damage(name, "it is missing, and a snapshot names it as the code's changes"))


def _list(value: Any) -> list[Any]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
