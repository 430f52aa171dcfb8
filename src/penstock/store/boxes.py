"""Files of boxes: each rank's rectangular parts of a state's tensors, as safetensors that any other layout can read from.

A box that is a whole tensor is stored under the tensor's name, another under `name@offsets`, such as `model.head.weight@0,512`: with
its own shape that says where it lies. A reader opens every file's header and copies what overlaps the boxes that it wants, whatever
boxes were written.

The format is the public one of safetensors (8 bytes of length, a JSON header, raw numbers), written here tensor by tensor, so that a rank's
state is never in memory twice, an error of the disk is Python's own, and the checksum is made on the way; reading is the library's.
torch's distributed checkpoint stores safetensors too (`HuggingFaceStorageWriter`), but keeps one box of a tensor in a file (a rank
with the experts 5 and 2 of a stack has two), and asks for DTensors or private hooks to be told of boxes at all.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
import xxhash
from torch import Tensor

from penstock.parallel import Box, Layout, Placement
from penstock.parallel.weights import box_views

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Local:
    """What a rank holds of a tensor: its full shape, the boxes, and for each the view of it and whether this rank writes it."""

    shape: tuple[int, ...]
    boxes: list[Box]
    views: list[Tensor]
    written: list[bool]


def local_boxes(tensors: dict[str, Tensor], placements: dict[str, Placement], layout: Layout, rank: int) -> dict[str, Local]:
    """The boxes of `rank`'s tensors; one without a placement is whole on every rank.

    Every box is written by one rank: replicas take turns, the larger tensors first, so that each writes about as much.
    """
    places = {name: placements.get(name) or Placement(tuple(tensor.shape)) for name, tensor in tensors.items()}
    burden: dict[tuple[str, ...], list[int]] = {}
    found = {}
    for name in sorted(tensors, key=lambda name: (-math.prod(places[name].shape), name)):
        placement, tensor = places[name], tensors[name].detach()
        expected = placement.local_shape(layout, rank)
        assert tensor.shape == expected, f"{name} is {tuple(tensor.shape)} on rank {rank}, placed as {expected}"
        among = burden.setdefault(placement.axes, [0] * layout.size(*placement.replicas(layout)))
        turn = among.index(min(among))
        among[turn] += math.prod(placement.shape)
        boxes = placement.boxes(layout, rank)
        found[name] = Local(placement.shape, boxes, box_views(tensor, boxes), placement.owned(layout, rank, turn))
    return found


def box_key(name: str, shape: tuple[int, ...], box: Box) -> str:
    """Name under which a box of tensor `name` is stored."""
    return name if box.sizes == shape else f"{name}@{','.join(map(str, box.offsets))}"


def write_boxes(file: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors by their stored names as a safetensors file, flushed to the disk; return its XXH3 checksum. Raises `OSError`."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps every tensor aligned to its numbers
    header, end = {}, 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_128()
    with open(file, "wb") as stream:
        for block in itertools.chain([memoryview(len(text).to_bytes(8, "little")), memoryview(text)], (_bytes(tensors[name]) for name in order)):
            digest.update(block)
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def read_boxes(files: Iterable[Path], wanted: dict[str, Local]) -> list[str]:
    """Fill the views of `wanted` from whatever boxes the files hold; return the names of tensors that the files do not cover."""
    missing = {name: sum(view.numel() for view in local.views) for name, local in wanted.items()}
    for file in files:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (the library's object has no other way to iterate)
                name, _, offsets = key.partition("@")
                if name in wanted:
                    stored = opened.get_slice(key)
                    sizes = tuple(stored.get_shape())
                    box = Box(tuple(map(int, offsets.split(","))) if offsets else (0,) * len(sizes), sizes)
                    for own, view in zip(wanted[name].boxes, wanted[name].views):
                        there, here = overlap(box, own)
                        if there is not None:
                            source = opened.get_tensor(key) if not sizes else stored[there]
                            view[here].copy_(source)
                            missing[name] -= source.numel()
    return sorted(name for name, count in missing.items() if count)


def overlap(stored: Box, wanted: Box) -> tuple[tuple[slice, ...] | None, tuple[slice, ...]]:
    """What two boxes of one tensor share, as an index into each; None for the first where that is nothing."""
    there, here = [], []
    for a, n, b, m in zip(stored.offsets, stored.sizes, wanted.offsets, wanted.sizes):
        start, end = max(a, b), min(a + n, b + m)
        if start >= end:
            return None, ()
        there.append(slice(start - a, end - a))
        here.append(slice(start - b, end - b))
    return tuple(there), tuple(here)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
