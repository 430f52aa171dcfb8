"""Snapshots: the logical training state, written through torch's distributed checkpoint as safetensors.

A state is a flat dictionary of tensors by logical name (`model.…`, `optim.…`, `ema.…`) plus a few plain numbers.
Every rank calls `save_snapshot`; replicated tensors are written once, the work shared between ranks. Files are
safetensors, their index is in their own JSON headers, the plain numbers and an XXH3 checksum of every file
are in `snapshot.json`: nothing is ever unpickled, neither here nor by torch.

Atomic: everything goes to `.partial-step-N`, is flushed to the disk, and the folder is renamed when all ranks have
succeeded. A crash leaves only a `.partial` folder, which the next save removes; a full disk removes it at once.

Cost: one write of 12 bytes a parameter (AdamW, float32), during which training waits. When not to use it: it
stores the whole state each time, so very frequent snapshots of a large model want the incremental store.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from penstock.comm import World
from penstock.config import SharedError, UserError, disk_errors
from penstock.store.runs import write_text

FORMAT = 1
_NAME = re.compile(r"step-(\d{8})$")


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot on disk."""

    path: Path
    step: int


def list_snapshots(folder: Path) -> list[Snapshot]:
    """Complete snapshots, oldest first."""
    found = [Snapshot(p, int(m[1])) for p in folder.glob("step-*") if (m := _NAME.search(p.name)) and (p / "snapshot.json").is_file()]
    return sorted(found, key=lambda snapshot: snapshot.step)


def save_snapshot(folder: Path, step: int, tensors: dict[str, Tensor], numbers: dict[str, Any], world: World, keep: int = 0) -> Snapshot:
    """Write the state of `step` on all ranks together; drop the oldest beyond `keep` (0: keep all).

    Raises `SharedError` on every rank when any rank could not write, leaving earlier snapshots untouched.
    """
    final, partial = folder / f"step-{step:08d}", folder / f".partial-step-{step:08d}"
    if world.is_lead:
        shutil.rmtree(partial, ignore_errors=True)
    world.barrier()
    failure = _attempt(lambda: _write_files(partial, tensors, world))
    _raise_together(failure, partial, step, world)
    if world.is_lead:
        failure = _attempt(lambda: _publish(partial, final, step, numbers))
    _raise_together(failure, partial, step, world)
    if world.is_lead and keep:
        for old in list_snapshots(folder)[:-keep]:
            shutil.rmtree(old.path, ignore_errors=True)
    return Snapshot(final, step)


def load_snapshot(snapshot: Snapshot, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Fill `tensors` in place from a snapshot and return its plain numbers.

    Raises `UserError` naming the tensor when a name or shape differs from what the snapshot holds.
    """
    meta = read_numbers(snapshot)
    reader = HuggingFaceStorageReader(str(snapshot.path))
    stored = {name: tuple(m.size) for name, m in reader.read_metadata().state_dict_metadata.items() if isinstance(m, TensorStorageMetadata)}
    _check_same(stored, {name: tuple(_at_least_1d(t).shape) for name, t in tensors.items()}, snapshot)
    with _single_process():
        load_distributed({name: _at_least_1d(t) for name, t in tensors.items()}, storage_reader=reader, no_dist=True)
    return meta


def read_numbers(snapshot: Snapshot) -> dict[str, Any]:
    """The plain numbers of a snapshot, after its files' checksums have been verified; raises `UserError`."""
    try:
        manifest = json.loads((snapshot.path / "snapshot.json").read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"snapshot {snapshot.path} is damaged: snapshot.json {error}{_older(snapshot)}") from None
    for name, digest in files.items():
        file = snapshot.path / name
        if not file.is_file() or _checksum(file) != digest:
            raise UserError(f"snapshot {snapshot.path} is damaged: {name} is missing or its checksum differs{_older(snapshot)}")
    return manifest["numbers"]


def _write_files(partial: Path, tensors: dict[str, Tensor], world: World) -> None:
    with disk_errors(partial.parent, "saving a snapshot"):
        partial.mkdir(parents=True, exist_ok=True)
        state = {name: _at_least_1d(t.detach()) for name, t in tensors.items()}
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        try:
            with _single_process():
                save_distributed(state, storage_writer=writer, no_dist=world.size == 1)
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None


def _publish(partial: Path, final: Path, step: int, numbers: dict[str, Any]) -> None:
    with disk_errors(partial.parent, "saving a snapshot"):
        files = sorted(partial.glob("*.safetensors"))
        for file in files:
            _sync(file)
        manifest = {"format": FORMAT, "step": step, "numbers": numbers, "files": {f.name: _checksum(f) for f in files}}
        write_text(partial / "snapshot.json", json.dumps(manifest, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        _sync(final.parent)


def _attempt(action: Callable[[], None]) -> UserError | None:
    try:
        action()
    except UserError as error:
        return error
    return None


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


def _at_least_1d(tensor: Tensor) -> Tensor:
    return tensor.view(1) if tensor.dim() == 0 else tensor


@contextmanager
def _single_process() -> Iterator[None]:
    """Without torch's warning that it saves in a single process, which is what we asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


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
