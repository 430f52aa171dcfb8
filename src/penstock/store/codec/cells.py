"""A cell's numbers as a payload and back, in the way that seems shortest (ways.py), which the payload says.

    payload = head: model, marks, what the model needs to know, columns; the sections of the marks, and of the model

| codec     | models                                                                              |
|-----------|-------------------------------------------------------------------------------------|
| `planes`  | byte planes (planes.py): integers, float64, short cells, what nothing else shortens |
| `floats`  | magnitudes (logs.py), differences (difference.py)                                   |
| `bounded` | steps of the difference (quantised.py), or of its logarithm (ratios.py)             |

A name ends in `+base` where the payload can only be read with the content of the base. First moments say nothing of those 20 steps before, so their
increments often are whole cells, and no link of a chain. What has not moved is left out beforehand (still.py).

A payload is checked for sizes, not for content: who stores it has the digest of what it decodes to. A damaged one raises CodecError or decodes to
other numbers, and makes no reader take more memory than the cell calls for. Writing and reading take about four times the cell's bytes.

Cost, and how short cells become: `python -m benchmarks store_bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from penstock.store.codec import planes, still
from penstock.store.codec.blocks import Shape
from penstock.store.codec.formats import FORMATS, Format
from penstock.store.codec.sections import CodecError, join, split
from penstock.store.codec.ways import HEAD, QUALITIES, SECTIONS, Model, Way, exact_way, rough_way

Kind = Literal["lossless", "bounded"]
MAX_BYTES = 1 << 26  # of a cell
SHORT = 256  # numbers of a cell for which no scale is worth its bytes
BASED = "+base"
NAMES = {Model.PLANES: "planes", Model.LOGS: "floats", Model.DIFFERENCE: "floats", Model.STEPS: "bounded", Model.RATIOS: "bounded"}
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Encoded:
    """A cell's codec by name, its payload, and what that decodes to (flat): the cell itself, or with bounded error a tensor near it."""

    codec: str
    payload: bytes
    content: Tensor

    @property
    def needs_base(self) -> bool:
        """Whether the payload can be read only with the content of the base."""
        return self.codec.endswith(BASED)


def encode(cell: Tensor, base: Tensor | None = None, kind: Kind = "lossless", quality: float = 0.25) -> Encoded:
    """The payload of a contiguous CPU tensor, against the content of the same cell in the parent snapshot if `base` is given.

    Give cells their shape: rows and columns (the last dim; all others make rows) differ in scale, which saves bytes. A base of any shape is taken as
    the cell's numbers in order. With kind "bounded" floats may be off by what quantised.py and ratios.py say, in terms of `quality`, 1/16 to 1.

    Raises ValueError for tensors that are not contiguous, are elsewhere, differ in dtype or length from their base, or are larger than a cell may be.
    """
    _check(cell, base, quality)
    columns = cell.shape[-1] if cell.dim() > 1 else cell.numel()
    x, old, form = _words(cell), None if base is None else _words(base), FORMATS.get(cell.dtype)
    if form is not None and x.size >= SHORT:
        codec, payload, content = _encode_floats(x, old, (x.size // columns, columns), form, kind, quality)
        if len(payload) < cell.nbytes:
            return Encoded(codec, payload, torch.from_numpy(content).view(cell.dtype))
    sections, based = planes.encode(x, old)
    payload = Way(Model.PLANES, weight=4 * based).packed(still.Marks.NONE, columns) + join([b"", b"", *sections])
    return Encoded("planes" + BASED * based, payload, cell.reshape(-1))


def decode(codec: str, payload: bytes | memoryview, dtype: torch.dtype, count: int, base: Tensor | None = None) -> Tensor:
    """The flat tensor of `count` numbers that a payload holds; `base` is the content that it was encoded against, if its codec names one.

    Raises CodecError for payloads that are damaged, cut off, of an unknown codec, or of another count or dtype; ValueError for a cell too large.
    """
    if count * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"a cell has at most {MAX_BYTES} bytes, not {count * dtype.itemsize}")
    based, word, payload = codec.endswith(BASED), np.dtype(f"i{dtype.itemsize}"), memoryview(payload)
    if codec.removesuffix(BASED) not in NAMES.values():
        raise CodecError(f"there is no codec {codec!r}; a newer version of Penstock may have it")
    if based and (base is None or base.dtype != dtype or base.numel() != count):
        raise CodecError(f"a payload of codec {codec} cannot be read without its base, {count} numbers of {dtype}")
    way, marks, columns = Way.unpacked(payload)
    if NAMES[way.model] != codec.removesuffix(BASED):
        raise CodecError(f"damaged payload: {way.model.name} in codec {codec}")
    old = _words(base.contiguous()) if base is not None and based else np.zeros(count, word)
    form, data = FORMATS.get(dtype), payload[HEAD.size :]
    if way.model is Model.PLANES:
        return torch.from_numpy(planes.decode(split(data, 2 + word.itemsize)[2:], old if way.weight else None, count, word)).view(dtype)
    if form is None or not columns or count % columns:
        raise CodecError(f"damaged payload: {count} numbers of {dtype} in columns of {columns}")
    sections = split(data, 2 + SECTIONS[way.model])
    moved = still.read(marks, sections[:2], (count // columns, columns))
    return torch.from_numpy(moved.back(way.read(sections[2:], moved.of(old), moved.shape, form), old)).view(dtype)


def _encode_floats(x: np.ndarray, base: np.ndarray | None, shape: Shape, form: Format, kind: Kind, quality: float) -> tuple[str, bytes, np.ndarray]:
    """Codec, payload and content of a cell of floats."""
    old = np.zeros_like(x) if base is None else base
    marks, mark_sections, moved = still.find(x, old, shape)
    left, was, based = moved.of(x), moved.of(old), base is not None
    exact = kind == "lossless"
    way = exact_way(left, was, based, moved.shape, form) if exact else rough_way(left, was, based, moved.shape, form, quality)
    sections, content = way.write(left, was, moved.shape, form)
    payload = way.packed(marks, shape[1]) + join(mark_sections + sections)
    if not exact and len(payload) > x.nbytes // 2:  # most numbers are beyond the reach of its steps
        return _encode_floats(x, base, shape, form, "lossless", quality)
    needs_base = based and (way.weight > 0 or marks != still.Marks.NONE)
    return NAMES[way.model] + BASED * needs_base, payload, moved.back(content, old)


def _check(cell: Tensor, base: Tensor | None, quality: float) -> None:
    if not cell.is_contiguous() or cell.device.type != "cpu" or cell.nbytes > MAX_BYTES:
        raise ValueError(f"need a contiguous CPU tensor of at most {MAX_BYTES} bytes, got {tuple(cell.shape)} of {cell.dtype} on {cell.device}")
    if base is not None and (base.dtype != cell.dtype or base.numel() != cell.numel() or not base.is_contiguous()):
        raise ValueError(f"need a contiguous base like the cell, got {tuple(base.shape)} of {base.dtype} for {tuple(cell.shape)} of {cell.dtype}")
    if not QUALITIES[0] <= quality <= QUALITIES[1]:
        raise ValueError(f"quality must be from {QUALITIES[0]} to {QUALITIES[1]}, not {quality}")


def _words(cell: Tensor) -> np.ndarray:
    """A contiguous tensor as signed integers, flat, without copying."""
    return cell.detach().view(WORDS[cell.element_size()]).reshape(-1).numpy()
