"""A run's store with 10,000 snapshots: listed, its index made again, its story told, collected.

The snapshots are those of a state of 30 tensors, eight saved as increments after each in full, with payloads of a few bytes in real packs; what is
timed is the store's own code on them, on this disk. `list_seconds_10000` is the best of five listings with the step, losses and bytes of every
snapshot (aim: 0.2 s), `rebuild_seconds_10000` one without an index, which reads every manifest, `log_seconds_10000` the run's whole story with its
chain of hashes checked, and `gc_seconds_10000` a collection that keeps ten snapshots (aim: 10 s).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import blake3

from penstock.store import (
    ChunkEntry,
    LocalFolder,
    Manifest,
    PackWriter,
    Policy,
    TensorEntry,
    collect,
    indexed,
    list_snapshots,
    new_pack_name,
    run_timeline,
    tell_snapshot,
    write_manifest,
)

SNAPSHOTS, TENSORS, CHAIN = 10_000, 30, 8


def run() -> dict[str, float | str]:
    """Make the store and measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        with patch.object(os, "fsync"):  # the making is not what is measured
            make(folder, SNAPSHOTS)
        os.sync()
        figures: dict[str, float | str] = {f"rebuild_seconds_{SNAPSHOTS}": seconds(lambda: indexed(folder))}
        figures[f"list_seconds_{SNAPSHOTS}"] = list_seconds(folder)
        figures[f"log_seconds_{SNAPSHOTS}"] = seconds(lambda: run_timeline(folder))
        figures[f"gc_seconds_{SNAPSHOTS}"] = gc_seconds(folder)
        return figures


def list_seconds(folder: Path) -> float:
    """Best of five listings."""
    return min(seconds(lambda: indexed(folder)) for _ in range(5))


def gc_seconds(folder: Path, keep: int = 10) -> float:
    """A collection of all snapshots but `keep`."""
    taken = seconds(lambda: collect(folder, Policy(keep=keep)))
    assert len(list_snapshots(folder)) == keep, "the collection left others"
    return taken


def seconds(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def make(path: Path, snapshots: int) -> None:
    """A store of so many snapshots, each the parent of the next."""
    folder, parent, before = LocalFolder(path), None, dict[str, str]()
    chunks: dict[str, ChunkEntry] = {}
    for step in range(1, snapshots + 1):
        full = (step - 1) % (CHAIN + 1) == 0
        digests = {f"model.layer.{i}.weight": blake3.blake3(f"{step} {i}".encode()).hexdigest(length=20) for i in range(TENSORS)}
        chunks = {} if full else chunks
        with PackWriter(folder, new_pack_name(step, 0)) as pack:
            for tensor, digest in digests.items():
                codec, base = ("planes", None) if full else ("planes-xor", before[tensor])
                chunks[digest] = pack.add(digest, b"payload", codec, base, "float32", 1000)
        tensors = {tensor: TensorEntry((10, 100), "float32", (digest,)) for tensor, digest in digests.items()}
        about = {"metrics": {"loss": 3.0 - step * 1e-4, "val_loss": 3.1 - step * 1e-4}}
        manifest = Manifest(step, parent, "2026-01-01T00:00:00+0000", tensors, dict(chunks), {"step": step, "wall_s": step * 1.0}, about)
        write_manifest(folder, manifest)
        tell_snapshot(path, manifest)
        parent, before = manifest.id, digests
