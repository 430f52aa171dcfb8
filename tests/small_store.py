"""A run's store made by hand: a state of one tensor and a constant, saved as full chunks and increments, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from penstock.store import LocalFolder, Manifest, PackWriter, Snapshot, TensorEntry, append_event, history_head, new_pack_name, write_manifest
from penstock.store.cells.cell_writer import digest_of
from penstock.store.codec import encode
from penstock.store.story.timeline import tell_snapshot

CHAIN = 3


class SmallStore:
    """Writes snapshots into `path`; the content of step n is a function of n alone."""

    def __init__(self, path: Path, numbers: int = 64) -> None:
        self.path, self.numbers = path, numbers
        self.folder = LocalFolder(path)
        self.manifests: list[Manifest] = []
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "run.json").exists():
            (path / "run.json").write_text(json.dumps({"run": path.name, "created": "2026-01-01T00:00:00+0000"}))

    def weights(self, step: int) -> torch.Tensor:
        """The tensor `w` of a step."""
        return torch.linspace(0, 1, self.numbers) * 1.01**step

    def save(self, step: int, parent: Manifest | None = None, created: str = "2026-01-01T00:00:00+0000", tell: bool = True, **metrics: float) -> Snapshot:
        """Save the state of `step` after the last one, or after `parent`; every CHAIN steps in full."""
        parent = parent or (self.manifests[-1] if self.manifests else None)
        chunks = dict(parent.chunks) if parent else {}
        base = parent.tensors["w"].cells[0] if parent and len(self.manifests) % CHAIN else None
        content = {"w": self.weights(step), "still": torch.zeros(self.numbers)}
        with PackWriter(self.folder, new_pack_name(step, 0)) as pack:
            for name, tensor in content.items():
                against = base if name == "w" else None
                encoded = encode(tensor, self.weights(parent.step) if against and parent else None)
                digest = digest_of(tensor, "float32")
                if digest not in chunks:
                    chunks[digest] = pack.add(digest, encoded.payload, encoded.codec, against, "float32", self.numbers)
        tensors = {name: TensorEntry((self.numbers,), "float32", (digest_of(tensor, "float32"),)) for name, tensor in content.items()}
        about = {"metrics": metrics, "history": history_head(self.path)}
        manifest = Manifest(step, parent.id if parent else None, created, tensors, _closure(tensors, chunks), {"step": step, "wall_s": step * 60.0}, about)
        saved = write_manifest(self.folder, manifest)
        if tell:
            tell_snapshot(self.path, manifest)
        self.manifests.append(manifest)
        return saved

    def tell(self, kind: str, text: str, step: int | None = None) -> None:
        """Add an event."""
        append_event(self.path, kind, text, step)


def _closure(tensors, chunks):
    found = {}
    for entry in tensors.values():
        digest = entry.cells[0]
        while digest is not None:
            found[digest] = chunks[digest]
            digest = chunks[digest].base
    return found
