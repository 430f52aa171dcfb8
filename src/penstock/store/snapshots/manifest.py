"""A snapshot's manifest: one small JSON file that says which chunks make up the state at a step, and how it came about.

    id, format 3, step, parent, created      its place in the run's tree
    packs, chunks                            {digest: [pack, offset, size, codec, base, dtype, count]}, `pack` being a place in `packs`
    tensors                                  {name: {shape, dtype, cells: digests in the grid's order}}
    numbers, about                           the engine's plain numbers; config, code, environment, data, layout, metrics

Chunks that are increments name their base, which is listed too, down to one that needs none: a manifest and the packs it names suffice to load the
snapshot, whatever else is gone. The id stands first in the file and is BLAKE3 of the JSON without it, keys sorted and no spaces, so whoever holds an
id can tell that nothing was changed; the parents' ids make a chain of a run. Order comes from steps and from the history; the clock only labels.

A manifest is written after everything it names is on the disk, and read with suspicion: types, digests, names of packs, sizes and the id are
checked before any of it is used. Cost: some 150 bytes a chunk.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import blake3

from penstock.store.canonical import canonical, plain
from penstock.store.cells.chunks import DIGEST, ITEM_BYTES, MAX_CHAIN, ChunkEntry, Damaged
from penstock.store.cells.packs import MAGIC, pack_file
from penstock.store.places.folder import Folder, LocalFolder
from penstock.store.places.locks import store_lock
from penstock.store.story.history import last_event, read_history

FORMAT = 3
SNAPSHOTS = "snapshots"
MAX_BYTES = 1 << 30  # of a manifest: what is larger was not written by us
ID = re.compile(r"[0-9a-f]{64}")
_LEAD = re.compile(rb'\{"id":"([0-9a-f]{64})",')
_FILE = re.compile(rf"{SNAPSHOTS}/step-(\d{{8,12}})-([0-9a-f]{{12}})\.json")


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's full shape, its dtype, and the digests of its cells in the grid's order."""

    shape: tuple[int, ...]
    dtype: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a snapshot is made of; `chunks` is closed: it has every base of its increments. `created` is ISO 8601."""

    step: int
    parent: str | None
    created: str
    tensors: dict[str, TensorEntry]
    chunks: dict[str, ChunkEntry]
    numbers: dict[str, Any]
    about: dict[str, Any]

    @cached_property
    def id(self) -> str:
        """BLAKE3 of the content, 64 hexadecimal digits."""
        return blake3.blake3(canonical(self._content())).hexdigest()

    @property
    def packs(self) -> list[str]:
        """Names of the packs that it needs, in order."""
        return sorted({entry.pack for entry in self.chunks.values()})

    @property
    def file(self) -> str:
        """Its name in the run's folder."""
        return manifest_file(self.step, self.id)

    def as_json(self) -> bytes:
        """The file's bytes."""
        return b'{"id":"' + self.id.encode() + b'",' + canonical(self._content())[1:] + b"\n"

    def _content(self) -> dict[str, Any]:
        packs = self.packs
        place = {pack: index for index, pack in enumerate(packs)}
        return {
            "format": FORMAT,
            "step": self.step,
            "parent": self.parent,
            "created": self.created,
            "tensors": {name: vars(entry) for name, entry in self.tensors.items()},
            "packs": packs,
            "chunks": {digest: [place[entry.pack], *entry.row] for digest, entry in self.chunks.items()},
            "numbers": plain(self.numbers),
            "about": plain(self.about),
        }


class Snapshot(NamedTuple):
    """A complete snapshot by its manifest's name: `file` in `folder`; `id` is the first 12 digits of its id."""

    folder: Folder
    file: str
    step: int
    id: str

    @property
    def path(self) -> Path:
        """The manifest's path, where the folder is local."""
        return Path(self.folder.label) / self.file


def manifest_file(step: int, id: str) -> str:
    """Name of a manifest's file in the run's folder."""
    return f"{SNAPSHOTS}/step-{step:08d}-{id[:12]}.json"


def list_snapshots(folder: Folder | Path) -> list[Snapshot]:
    """Complete snapshots in a run's folder by their manifests' names, the newest last; their content is not read.

    They come in the order of their steps, but where the run went back and on from an older one: then in the order of the history. One that is not
    told there is the first, or if it is of a later step than the last that is: newest, as its writer died before it could tell.
    """
    opened = folder if isinstance(folder, Folder) else LocalFolder(folder)
    found = [Snapshot(opened, name, int(match[1]), match[2]) for name in opened.names(SNAPSHOTS) if (match := _FILE.fullmatch(name))]
    found.sort(key=lambda snapshot: snapshot.step)
    last = last_event(opened, "snapshot") if found else None
    if last is None or (len({snapshot.step for snapshot in found}) == len(found) and str(last.data.get("id"))[:12] == found[-1].id):
        return found
    told = {str(event.data.get("id"))[:12]: event.seq for event in read_history(opened).events if event.kind == "snapshot"}
    place = {snapshot.id: math.inf if snapshot.step > (last.step or 0) else 0 for snapshot in found} | told
    return sorted(found, key=lambda snapshot: (place[snapshot.id], snapshot.step, snapshot.id))


def write_manifest(folder: Folder, manifest: Manifest) -> Snapshot:
    """Publish a snapshot, which is there from now on.

    Raises `Damaged` when a pack that it names is not there whole (write what it has again), `UserError` when the disk is full or refuses.
    """
    with store_lock(folder):  # no pack can be removed between being seen and being named
        check_packs(folder, manifest)
        folder.write(manifest.file, manifest.as_json())
    return Snapshot(folder, manifest.file, manifest.step, manifest.id[:12])


def read_manifest(snapshot: Snapshot) -> Manifest:
    """A snapshot's manifest, its every field checked; raises `Damaged` with what is wrong with it."""
    where = f"snapshot {snapshot.file} in {snapshot.folder.label}"
    try:
        if snapshot.folder.size(snapshot.file) > MAX_BYTES:
            raise ValueError("it is larger than any manifest")
        manifest = parse_manifest(snapshot.folder.read(snapshot.file))
        if manifest.file != snapshot.file:
            raise ValueError(f"it is that of {manifest.file}")
    except FileNotFoundError:
        raise Damaged(f"{where} is missing", snapshot.file) from None
    except OSError as error:
        raise Damaged(f"{where} cannot be read: {error.strerror}", snapshot.file) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise Damaged(f"{where} is damaged: {error}", snapshot.file) from None
    return manifest


def check_packs(folder: Folder, manifest: Manifest) -> None:
    """See that the packs a manifest names are there and long enough; raises `Damaged`."""
    ends: dict[str, int] = {}
    for entry in manifest.chunks.values():
        ends[entry.pack] = max(ends.get(entry.pack, len(MAGIC)), entry.offset + entry.size)
    for pack, end in ends.items():
        file = pack_file(pack)
        try:
            size = folder.size(file)
        except FileNotFoundError:
            raise Damaged(f"{file} in {folder.label} is missing, which step {manifest.step} needs", file) from None
        if size < end:
            raise Damaged(f"{file} in {folder.label} is cut off: {size} bytes, and step {manifest.step} needs {end}", file)


def parse_manifest(data: bytes) -> Manifest:
    """A manifest from its file's bytes; raises ValueError that says what is wrong."""
    lead = _LEAD.match(data)
    if lead is None:
        _wrong("it is not a manifest")
    content = b"{" + data[lead.end() : -1]
    raw = _mapping(json.loads(content), "it")
    if raw.get("format") != FORMAT:
        _wrong(f"its format is {str(raw.get('format'))[:20]}, and this version of Penstock reads {FORMAT}; use the version that wrote it")
    missing = {"step", "parent", "created", "packs", "chunks", "tensors", "numbers", "about"} - raw.keys()
    if missing:
        _wrong(f"it has no {', '.join(sorted(missing))}")
    chunks = _chunks(raw["packs"], raw["chunks"])
    manifest = Manifest(
        _natural(raw["step"], "step"),
        raw["parent"] if raw["parent"] is None else _text(raw["parent"], ID, "parent"),
        _text(raw["created"], re.compile(r".{1,40}"), "created"),
        _tensors(raw["tensors"], chunks),
        chunks,
        _mapping(raw["numbers"], "numbers"),
        _mapping(raw["about"], "about"),
    )
    id = lead[1].decode()
    if blake3.blake3(content).hexdigest() != id or data[-1:] != b"\n":
        _wrong(f"its content does not have the id {id[:12]}")
    vars(manifest)["id"] = id  # as has just been seen; working it out again would double the cost of reading
    return manifest


def _chunks(packs: Any, rows: Any) -> dict[str, ChunkEntry]:
    if not isinstance(packs, list):
        _wrong("packs is not a list")
    chunks = {}
    for digest, row in _mapping(rows, "chunks").items():
        if not isinstance(row, list) or len(row) != 7:
            _wrong(f"chunk {digest[:12]} has no 7 fields")
        index = _natural(row[0], "a chunk's pack")
        if index >= len(packs):
            _wrong(f"chunk {digest[:12]} is in a pack that is not listed")
        chunks[_text(digest, DIGEST, "digest")] = ChunkEntry(packs[index], *row[1:]).check()
    _check_bases(chunks)
    return chunks


def _check_bases(chunks: dict[str, ChunkEntry]) -> None:
    """Every increment ends, by its bases, at a chunk that needs none, and has its base's dtype and count."""
    for digest, entry in chunks.items():
        length = 0
        while entry.base is not None:
            base, length = chunks.get(entry.base), length + 1
            if base is None or (base.dtype, base.count) != (entry.dtype, entry.count):
                _wrong(f"chunk {digest[:12]} is an increment of a chunk that is not there, or is of another kind")
            if length > MAX_CHAIN:
                _wrong(f"chunk {digest[:12]} has more than {MAX_CHAIN} bases, or is one of its own")
            entry = base


def _tensors(rows: Any, chunks: dict[str, ChunkEntry]) -> dict[str, TensorEntry]:
    tensors = {}
    for name, row in _mapping(rows, "tensors").items():
        if set(_mapping(row, name)) != {"shape", "dtype", "cells"} or not all(isinstance(row[key], list) for key in ("shape", "cells")):
            _wrong(f"tensor {name} is not described by shape, dtype and cells")
        shape = tuple(_natural(size, f"a size of {name}") for size in row["shape"])
        if row["dtype"] not in ITEM_BYTES:
            _wrong(f"tensor {name} has dtype {row['dtype']!r}")
        cells = [chunks.get(digest) for digest in row["cells"]]
        if any(cell is None or cell.dtype != row["dtype"] for cell in cells) or sum(cell.count for cell in cells if cell) != math.prod(shape):
            _wrong(f"the chunks of tensor {name} are not there, or do not make up its shape {shape}")
        tensors[name] = TensorEntry(shape, row["dtype"], tuple(row["cells"]))
    return tensors


def _natural(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        _wrong(f"{what} is {value!r}, not a natural number")
    return value


def _text(value: Any, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        _wrong(f"{what} is {value!r}")
    return value


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _wrong(f"{what} is not an object")
    return value


def _wrong(what: str) -> NoReturn:
    raise ValueError(what)
