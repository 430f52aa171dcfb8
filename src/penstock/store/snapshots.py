"""Snapshots: the logical training state as safetensors, each rank writing what it owns, to be read by any other layout.

A state is a flat dictionary of tensors by logical name (`model.…`, `optim.…`, `ema.…`), of which a rank of a parallel layout
holds the boxes that its placements say, plus a few plain numbers. Every rank calls `save_snapshot` and writes one file of boxes (`boxes.py`);
what several ranks hold is written once, the work shared between them. `load_snapshot` reads each rank's own boxes from
whatever boxes the files hold. Full shapes, the plain numbers and an XXH3 checksum of every file are in `snapshot.json`: nothing is ever pickled.

Atomic: everything goes to `.partial-step-N`, is flushed to the disk, and the folder is renamed when all ranks have
succeeded. A crash leaves only a `.partial` folder, which the next save removes; a full disk removes it at once.

Cost: one write of 12 bytes a parameter (AdamW, float32), shared by all ranks, during which training waits; loading reads the files once
more for their checksums, shared likewise. The folder must be seen by all ranks. When not to use it: it stores the whole state
each time, so very frequent snapshots of a large model want the incremental store.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash
from torch import Tensor

from penstock.comm import World
from penstock.config import SharedError, UserError, disk_errors
from penstock.parallel import Box, Layout, Placement
from penstock.store.boxes import Local, box_key, local_boxes, read_boxes, write_boxes
from penstock.store.runs import write_text

FORMAT = 2
_NAME = re.compile(r"step-(\d{8})$")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot on disk."""

    path: Path
    step: int


def list_snapshots(folder: Path) -> list[Snapshot]:
    """Complete snapshots, oldest first."""
    found = [Snapshot(p, int(m[1])) for p in folder.glob("step-*") if (m := _NAME.search(p.name)) and (p / "snapshot.json").is_file()]
    return sorted(found, key=lambda snapshot: snapshot.step)


def save_snapshot(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    numbers: dict[str, Any],
    world: World,
    keep: int = 0,
    placements: dict[str, Placement] | None = None,
    layout: Layout | None = None,
) -> Snapshot:
    """Write the state of `step` on all ranks together; drop the oldest beyond `keep` (0: keep all).

    `tensors` are this rank's, placed on `layout` as `placements` say; those without one are whole and equal on all ranks.
    Raises `SharedError` on every rank when any rank could not write, leaving earlier snapshots untouched.
    """
    final, partial = folder / f"step-{step:08d}", folder / f".partial-step-{step:08d}"
    state = local_boxes(tensors, placements or {}, layout or Layout(replicate=world.size), world.rank)
    if world.is_lead:
        shutil.rmtree(partial, ignore_errors=True)
    world.barrier()
    mine = {
        box_key(name, local.shape, box): view
        for name, local in state.items()
        for box, view, written in zip(local.boxes, local.views, local.written)
        if written and box.numel
    }
    digest, failure = _attempt(lambda: _write_files(partial, mine, world))
    _raise_together(failure, partial, step, world)
    shapes = {name: list(state[name].shape) for name in tensors}
    manifest = {"format": FORMAT, "step": step, "numbers": numbers, "shapes": shapes, "files": _all_files(digest or "", world)}
    if world.is_lead:
        _, failure = _attempt(lambda: _publish(partial, final, manifest))
    _raise_together(failure, partial, step, world)
    if world.is_lead and keep:
        for old in list_snapshots(folder)[:-keep]:
            shutil.rmtree(old.path, ignore_errors=True)
    return Snapshot(final, step)


def load_snapshot(
    snapshot: Snapshot,
    tensors: dict[str, Tensor],
    world: World | None = None,
    placements: dict[str, Placement] | None = None,
    layout: Layout | None = None,
    when_nodes_change: Callable[[str], str] = lambda name: "",
) -> dict[str, Any]:
    """Fill `tensors`, placed as in `save_snapshot`, in place from a snapshot of any layout, and return its plain numbers.

    `when_nodes_change` says of tensors that may have a row for every node what becomes of other rows than are wanted: each gets its part of their
    "sum", or their "mean"; or is "zero" if the shape differs in any way. Of those whose name begins with `exchange.`, one that is not there is zero,
    and one that is only there is left out.

    All ranks of `world` (default: this process alone) must call it; they share the verifying. Raises `UserError` on every rank: when the
    snapshot is damaged, or, naming the tensor, when a name or full shape differs from what it holds.
    """
    world = world or World()
    manifest, failure = _attempt(lambda: _verified(snapshot, world))
    if world.any(failure is not None, "snapshot"):
        raise failure or UserError(f"snapshot {snapshot.path} is damaged, as another rank found{_older(snapshot)}")
    assert manifest is not None
    state = local_boxes(tensors, placements or {}, layout or Layout(replicate=world.size), world.rank)
    stored = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    other = {name: local for name, local in state.items() if _other_rows(stored.get(name), local.shape, name, when_nodes_change(name))}
    ours = {name: local for name, local in state.items() if name not in other}
    strict = {name: shape for name, shape in stored.items() if name in ours or not (name in other or name.startswith("exchange."))}
    _check_same(strict, {name: local.shape for name, local in ours.items()}, snapshot)
    files = [snapshot.path / name for name in manifest["files"]]
    missing = read_boxes(files, ours) + _read_rows(files, other, stored, when_nodes_change)
    if missing:
        raise UserError(f"snapshot {snapshot.path} is damaged: its files hold only a part of {missing[0]}{_older(snapshot)}")
    return manifest["numbers"]


def _other_rows(stored: tuple[int, ...] | None, wanted: tuple[int, ...], name: str, rule: str) -> bool:
    """Whether a tensor is there with other rows of nodes than are wanted, or with none, and there is a rule for that."""
    if not rule or stored == wanted:
        return False
    if stored is None or rule == "zero":
        return name.startswith("exchange.")
    return wanted == stored[1:] or stored == wanted[1:] or stored[1:] == wanted[1:]


def _read_rows(
    files: list[Path], wanted: dict[str, Local], stored: dict[str, tuple[int, ...]], when_nodes_change: Callable[[str], str]
) -> list[str]:
    """Fill tensors from others with different rows of nodes. Returns the names the files do not cover."""
    sources: dict[str, Local] = {}
    for name, local in wanted.items():
        if name in stored and when_nodes_change(name) != "zero":
            lead = len(stored[name]) - len(local.shape)
            boxes = [_all_rows(box, stored[name], lead) for box in local.boxes]
            sources[name] = Local(stored[name], boxes, [view.new_empty(box.sizes) for view, box in zip(local.views, boxes)], local.written)
    missing = read_boxes(files, sources)
    for name, local in wanted.items():
        for index, view in enumerate(local.views):
            if name not in sources:
                view.zero_()
                continue
            rows, lead = sources[name].views[index], len(stored[name]) - len(local.shape)
            one = rows if lead < 0 else rows.sum(0, keepdim=lead == 0)
            parts = local.shape[0] if when_nodes_change(name) == "sum" else rows.shape[0] if lead >= 0 else 1
            view.copy_((one / parts).expand_as(view))
    return missing


def _all_rows(box: Box, stored: tuple[int, ...], lead: int) -> Box:
    """The part of a stored tensor from which a wanted box is made; it has `lead` dims more."""
    if lead < 0:
        return Box(box.offsets[1:], box.sizes[1:])
    same = slice(1 - lead, None)
    return Box((0, *box.offsets[same]), (stored[0], *box.sizes[same]))


def stored_names(snapshot: Snapshot) -> list[str]:
    """Names of the tensors in a snapshot."""
    return list(json.loads((snapshot.path / "snapshot.json").read_text(encoding="utf-8"))["shapes"])


def read_numbers(snapshot: Snapshot) -> dict[str, Any]:
    """The plain numbers of a snapshot, after its files' checksums have been verified; raises `UserError`."""
    return _verified(snapshot, World())["numbers"]


def _verified(snapshot: Snapshot, world: World) -> dict[str, Any]:
    """The manifest, after this rank has verified its share of the files."""
    try:
        manifest = json.loads((snapshot.path / "snapshot.json").read_text(encoding="utf-8"))
        files, written = manifest["files"], manifest["format"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"snapshot {snapshot.path} is damaged: snapshot.json {error}{_older(snapshot)}") from None
    if written != FORMAT:
        raise UserError(f"snapshot {snapshot.path} has format {written}, and this version of Penstock reads {FORMAT}; use the version that wrote it")
    for name, digest in list(files.items())[world.rank :: world.size]:
        file = snapshot.path / name
        if not file.is_file() or _checksum(file) != digest:
            raise UserError(f"snapshot {snapshot.path} is damaged: {name} is missing or its checksum differs{_older(snapshot)}")
    return manifest


def _write_files(partial: Path, mine: dict[str, Tensor], world: World) -> str:
    with disk_errors(partial.parent, "saving a snapshot"):
        partial.mkdir(parents=True, exist_ok=True)
        return write_boxes(partial / _file_name(world.rank), mine)


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _all_files(digest: str, world: World) -> dict[str, str]:
    """Checksums of all ranks' files by name, on every rank."""
    own = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8, device=world.device)
    digests = world.axis.all_gather(own, 0, "snapshot").view(world.size, -1).tolist()
    return {_file_name(rank): bytes(row).hex() for rank, row in enumerate(digests)}


def _publish(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    with disk_errors(partial.parent, "saving a snapshot"):
        write_text(partial / "snapshot.json", json.dumps(manifest, indent=1))
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        _sync(final.parent)


def _attempt(action: Callable[[], _Result]) -> tuple[_Result | None, UserError | None]:
    try:
        return action(), None
    except UserError as error:
        return None, error
    except OSError as error:
        return None, UserError(f"{error}; check the disk")


def _raise_together(failure: UserError | None, partial: Path, step: int, world: World) -> None:
    """Every rank learns whether any failed, so none goes on (or waits) alone."""
    if not world.any(failure is not None, "snapshot"):
        return
    if world.is_lead:
        shutil.rmtree(partial, ignore_errors=True)
    earlier = list_snapshots(partial.parent)
    last = f"the last good snapshot is step {earlier[-1].step}" if earlier else "there is no earlier snapshot"
    raise SharedError(f"step {step} could not be saved: {failure or 'another rank failed to write'}; {last}") from failure


def _check_same(stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], snapshot: Snapshot) -> None:
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            has, needs = stored.get(name, "nothing"), wanted.get(name, "nothing")
            raise UserError(
                f"snapshot {snapshot.path} does not fit this run: {name} is {has} there and {needs} here; "
                "resume with the run's own model and optimizer settings, or start a new run"
            )


def _older(snapshot: Snapshot) -> str:
    older = [s.step for s in list_snapshots(snapshot.path.parent) if s.step < snapshot.step]
    return f"; delete that folder and resume goes on from step {older[-1]}" if older else "; there is no older snapshot, start a new run"


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
