"""Reading cells: what a rank's boxes need of a snapshot's tensors, every cell's content checked.

A cell's content comes from its chunk's payload and, for increments, those of its bases, down to one that needs none; its digest is then held against
the manifest's. Cells are read in the order in which they were written, with as many at a time as there are threads.

Cost: the payloads of what the boxes touch and of their bases, one pass of the codec and of BLAKE3; a cell that straddles ranks is read by each.
Memory: a few cells. When not to use it: to see whether a whole snapshot is sound; that is `penstock runs verify`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.comm import compute_alone
from penstock.parallel import Box, Layout, Placement, inside
from penstock.parallel.weights import box_views
from penstock.store.cells.cell_writer import digest_of
from penstock.store.cells.chunks import ITEM_BYTES, ChunkEntry, Damaged
from penstock.store.cells.grid import grid
from penstock.store.cells.packs import pack_file, read_chunk
from penstock.store.codec import CodecError, decode
from penstock.store.places.folder import Folder
from penstock.store.snapshots.manifest import Manifest, TensorEntry


@dataclass(frozen=True)
class Local:
    """What a rank holds of a tensor: its full shape, the boxes, and for each the view of it."""

    shape: tuple[int, ...]
    boxes: list[Box]
    views: list[Tensor]


@dataclass(frozen=True)
class Wanted:
    """A cell to be read, and where parts of it go: the part as an index into the cell, and the tensor that it fills."""

    entry: TensorEntry
    index: int
    box: Box
    targets: list[tuple[tuple[slice, ...], Tensor]]


def local_boxes(tensors: Mapping[str, Tensor], placements: Mapping[str, Placement], layout: Layout, rank: int) -> dict[str, Local]:
    """The boxes of `rank`'s tensors; one without a placement is whole on every rank."""
    found = {}
    for name, tensor in tensors.items():
        placement = placements.get(name) or Placement(tuple(tensor.shape))
        expected = placement.local_shape(layout, rank)
        assert tensor.shape == expected, f"{name} is {tuple(tensor.shape)} on rank {rank}, placed as {expected}"
        boxes = placement.boxes(layout, rank)
        found[name] = Local(placement.shape, boxes, box_views(tensor.detach(), boxes))
    return found


def read_boxes(folder: Folder, manifest: Manifest, wanted: Mapping[str, Local]) -> None:
    """Fill the views of `wanted`, whose names and shapes are the snapshot's; raises `Damaged`."""
    cells = [cell for name in sorted(wanted) for cell in _touched(manifest.tensors[name], wanted[name])]
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=compute_alone) as pool:
        try:
            for _ in pool.map(lambda cell: _fill(folder, manifest, cell), cells):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def read_content(folder: Folder, chunks: Mapping[str, ChunkEntry], digest: str) -> Tensor:
    """A chunk's content, flat, its digest checked; raises `Damaged`."""
    chain = [digest]
    while (base := chunks[chain[-1]].base) is not None:
        chain.append(base)
    content = None
    for link in reversed(chain):
        entry = chunks[link]
        try:
            content = decode(entry.codec, read_chunk(folder, link, entry), getattr(torch, entry.dtype), entry.count, content)
        except CodecError as error:
            where = f"{pack_file(entry.pack)} in {folder.label}"
            raise Damaged(f"{where} is damaged: chunk {link[:12]} at {entry.offset} cannot be read: {error}") from None
    assert content is not None
    if digest_of(content, chunks[digest].dtype) != digest:
        raise Damaged(_differs(folder, chunks, chain))
    return content


def _differs(folder: Folder, chunks: Mapping[str, ChunkEntry], chain: list[str]) -> str:
    """Which link of a chain does not decode to what its digest says: the deepest that does not."""
    for link in reversed(chain[1:]):
        try:
            read_content(folder, chunks, link)
        except Damaged as error:
            return str(error)
    entry = chunks[chain[0]]
    return f"{pack_file(entry.pack)} in {folder.label} is damaged: the content of chunk {chain[0][:12]} at {entry.offset} has another digest"


def _touched(entry: TensorEntry, local: Local) -> Iterable[Wanted]:
    """The cells that a rank's boxes of a tensor touch."""
    cells = grid(entry.shape, ITEM_BYTES[entry.dtype])
    if len(cells) != len(entry.cells):
        raise Damaged(f"a tensor of shape {entry.shape} has {len(entry.cells)} cells in the manifest, and should have {len(cells)}")
    found: dict[int, Wanted] = {}
    for box, view in zip(local.boxes, local.views):
        for index, shared in cells.touching(box):
            cell = found.setdefault(index, Wanted(entry, index, cells.box(index), []))
            cell.targets.append((inside(shared, cell.box), view[inside(shared, box)]))
    return (found[index] for index in sorted(found))


def _fill(folder: Folder, manifest: Manifest, cell: Wanted) -> None:
    digest = cell.entry.cells[cell.index]
    content = read_content(folder, manifest.chunks, digest)
    if content.numel() != cell.box.numel:
        raise Damaged(f"chunk {digest[:12]} has {content.numel()} numbers, and its cell {cell.box.numel}")
    for index, target in cell.targets:
        target.copy_(content.view(cell.box.sizes)[index])
