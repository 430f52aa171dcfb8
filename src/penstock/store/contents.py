"""A snapshot's tensors in one process, whole or cell by cell, each checked against its digest as it is read.

For those who look at a state rather than go on from it: comparing, exporting, forking. Memory: what is asked for, and one cell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.parallel import Box
from penstock.store.grid import Grid, grid, inside
from penstock.store.loading import read_content
from penstock.store.manifest import Snapshot, read_manifest


class Contents:
    """A snapshot opened for reading; raises `Damaged` when it, or what is read of it, is."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.manifest = snapshot, read_manifest(snapshot)

    @property
    def described(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Full shape and dtype of each tensor by name."""
        return {name: (entry.shape, getattr(torch, entry.dtype)) for name, entry in self.manifest.tensors.items()}

    def grid(self, name: str) -> Grid:
        """How a tensor is cut into cells."""
        entry = self.manifest.tensors[name]
        return grid(entry.shape, getattr(torch, entry.dtype).itemsize)

    def cell(self, name: str, index: int) -> tuple[Box, Tensor]:
        """Cell number `index` of a tensor: where it lies, and its content in that shape."""
        box = self.grid(name).box(index)
        return box, read_content(self.snapshot.folder, self.manifest.chunks, self.manifest.tensors[name].cells[index]).view(box.sizes)

    def read(self, name: str) -> Tensor:
        """A whole tensor, on the CPU."""
        shape, dtype = self.described[name]
        whole, around = torch.empty(shape, dtype=dtype), Box((0,) * len(shape), shape)
        for index in range(len(self.grid(name))):
            box, content = self.cell(name, index)
            whole[inside(box, around)] = content
        return whole
