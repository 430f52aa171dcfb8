"""A snapshot's tensors in one process, whole or cell by cell, each checked against its digest as it is read.

For those who look at a state rather than go on from it: comparing, exporting, forking. Memory: what is asked for, and a few cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.parallel import Box, Layout
from penstock.store.cells.chunks import Damaged
from penstock.store.cells.grid import Grid, grid
from penstock.store.cells.reading import local_boxes, read_boxes, read_content
from penstock.store.snapshots.manifest import Snapshot, read_manifest


class Contents:
    """A snapshot opened for reading; raises `Damaged` when it, or what is read of it, is."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.manifest = snapshot, read_manifest(snapshot)

    @property
    def described(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Full shape and dtype of each tensor by name."""
        return {name: (entry.shape, getattr(torch, entry.dtype)) for name, entry in self.manifest.tensors.items()}

    def read(self, name: str) -> Tensor:
        """A whole tensor, on the CPU."""
        shape, dtype = self.described[name]
        whole = torch.empty(shape, dtype=dtype)
        read_boxes(self.snapshot.folder, self.manifest, local_boxes({name: whole}, {}, Layout(), 0))
        return whole

    def grid(self, name: str) -> Grid:
        """How a tensor is cut into cells."""
        entry = self.manifest.tensors[name]
        cells = grid(entry.shape, getattr(torch, entry.dtype).itemsize)
        if len(cells) != len(entry.cells):
            raise Damaged(f"snapshot {self.snapshot.file} lists {len(entry.cells)} cells of {name}, which has {len(cells)}")
        return cells

    def cell(self, name: str, index: int) -> tuple[Box, Tensor]:
        """Cell number `index` of a tensor: where it lies, and its content in that shape."""
        box = self.grid(name).box(index)
        content = read_content(self.snapshot.folder, self.manifest.chunks, self.manifest.tensors[name].cells[index])
        if content.numel() != box.numel:
            raise Damaged(f"snapshot {self.snapshot.file} names a chunk of {content.numel()} numbers for {box.numel} of {name}")
        return box, content.view(box.sizes)
