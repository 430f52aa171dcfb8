"""Taking a snapshot over into another run's folder: its packs linked, and if its tensors do not all fit, a manifest of those that do and of new ones.

A pack never changes, so two runs can share its file: each has a name for it, and the disk keeps it until both have dropped theirs. Where the disk
knows no such links, or the folders are on two, it is copied. Linked files have one fate where a disk damages them: `penstock runs push` makes
copies.

Cost: none a byte where links work; new tensors are made, encoded and written one at a time.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from penstock.config import disk_errors
from penstock.parallel import Box, inside
from penstock.store.cells.cell_writer import digest_of
from penstock.store.cells.grid import dtype_name, grid
from penstock.store.cells.packs import PackWriter, new_pack_name, pack_file
from penstock.store.codec import encode
from penstock.store.places.folder import LocalFolder
from penstock.store.snapshots.manifest import Manifest, Snapshot, TensorEntry, write_manifest
from penstock.store.snapshots.publish import closure
from penstock.store.story.history import FILE as HISTORY
from penstock.store.story.history import append_event, read_history
from penstock.store.story.timeline import tell_snapshot


def link_packs(source: Path, target: Path, packs: Iterable[str]) -> dict[str, int]:
    """Give `target` the packs of `source`; returns how many were `linked` and `copied`, and `bytes` of those. Raises `UserError`."""
    done = {"linked": 0, "copied": 0, "bytes": 0}
    with disk_errors(target, "taking over packs"):
        for pack in packs:
            old, new = source / pack_file(pack), target / pack_file(pack)
            new.parent.mkdir(exist_ok=True)
            done["linked" if link_or_copy(old, new) else "copied"] += 1
            done["bytes"] += new.stat().st_size
    return done


def link_or_copy(old: Path, new: Path) -> bool:
    """Give a file that never changes a second name, or copy it; whether it was linked."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        return False
    return True


def begin_from(target: Path, source: Path, manifest: Manifest, text: str, **data: Any) -> None:
    """Let the history in `target` begin as that of `source` did up to a snapshot, and then tell that it went another way there.

    So what led to the snapshot can be told from either folder, and the head that the manifest names is in both. The snapshots of before are told as
    dropped.
    """
    head = manifest.about.get("history") or {}
    lines = int(head.get("seq") or 0) if isinstance(head, dict) else 0
    folder = LocalFolder(source)
    if lines and folder.has(HISTORY):
        LocalFolder(target).write(HISTORY, b"".join(folder.read(HISTORY).splitlines(keepends=True)[:lines]))
    dropped = [event.data["id"] for event in read_history(target).events if event.kind == "snapshot" and "id" in event.data]
    origin = {"from": str(source.resolve()), "snapshot": manifest.id, "parent": manifest.parent}
    append_event(target, "fork", text, manifest.step, **origin, **data, dropped=dropped)


def adopt(target: Path, manifest: Manifest, how: str) -> Snapshot:
    """Publish a snapshot in `target`, where its packs are, and tell in the history how it came there."""
    snapshot = write_manifest(LocalFolder(target), manifest)
    tell_snapshot(target, manifest, how)
    return snapshot


def remade(
    manifest: Manifest, kept: Iterable[str], made: dict[str, Callable[[], Tensor]], target: Path, numbers: dict[str, Any], about: dict[str, Any]
) -> Manifest:
    """A manifest after another with those of its tensors that are `kept`, whose packs `target` has, and new ones, each `made` when its turn comes."""
    tensors = {name: manifest.tensors[name] for name in kept}
    with PackWriter(LocalFolder(target), new_pack_name(manifest.step, 0)) as pack:
        tensors |= {name: write_tensor(pack, make()) for name, make in made.items()}
    chunks = closure((digest for entry in tensors.values() for digest in entry.cells), pack.entries | manifest.chunks)
    created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Manifest(manifest.step, manifest.id, created, tensors, chunks, numbers, about)


def written_manifest(
    target: Path, step: int, tensors: dict[str, Callable[[], Tensor]], numbers: dict[str, Any], about: dict[str, Any]
) -> Manifest:
    """A manifest without a parent of a state, each tensor of which is fetched and written when its turn comes."""
    with PackWriter(LocalFolder(target), new_pack_name(step, 0)) as pack:
        entries = {name: write_tensor(pack, fetch()) for name, fetch in tensors.items()}
    return Manifest(step, None, time.strftime("%Y-%m-%dT%H:%M:%S%z"), entries, dict(pack.entries), numbers, about)


def write_tensor(pack: PackWriter, tensor: Tensor) -> TensorEntry:
    """Write a whole tensor, cell by cell in full; equal cells once."""
    shape, dtype = tuple(tensor.shape), dtype_name(tensor.dtype)
    around = Box((0,) * len(shape), shape)
    digests = [_write_cell(pack, tensor[inside(box, around)], dtype) for box in grid(shape, tensor.element_size()).boxes()]
    return TensorEntry(shape, dtype, tuple(digests))


def _write_cell(pack: PackWriter, content: Tensor, dtype: str) -> str:
    cell = content.detach().to("cpu").contiguous()
    digest = digest_of(cell.view(-1), dtype)
    if digest not in pack.entries:
        encoded = encode(cell)
        pack.add(digest, encoded.payload, encoded.codec, None, dtype, cell.numel())
    return digest
