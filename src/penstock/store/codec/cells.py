"""A cell's numbers as a payload and back: of the models that fit, the one that makes a sample of the cell shortest, which the payload says.

    payload = model, marks, what the model needs to know, quality, columns; the sections of the marks, and of the model

| codec     | models                                                                             |
|-----------|------------------------------------------------------------------------------------|
| `planes`  | byte planes (planes.py): integers, float64, short cells, what nothing else shortens |
| `floats`  | magnitudes (logs.py), differences (difference.py)                                  |
| `bounded` | steps of the difference (quantised.py), or of its logarithm (ratios.py)            |

A name ends in `+base` where the payload can only be read with the content of the base. First moments say nothing of those 20 steps before, so that their
increments often are whole cells, and no link of a chain. What has not moved is left out beforehand (still.py).

A payload is checked for sizes, not for content: who stores it has the digest of what it decodes to. A damaged one raises CodecError or decodes to other
numbers, and makes no reader take more memory than the cell calls for. Writing and reading take about four times the cell's bytes.

Cost, and how short cells become: `python -m benchmarks store_bytes`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from penstock.store.codec import difference, logs, planes, quantised, ratios, still
from penstock.store.codec.blocks import Shape
from penstock.store.codec.formats import FORMATS, Format
from penstock.store.codec.logs import WEIGHTS, Logs
from penstock.store.codec.sections import CodecError, join, split

Kind = Literal["lossless", "bounded"]
MAX_BYTES = 1 << 26  # of a cell
SHORT = 256  # numbers of a cell for which no scale is worth its bytes
SAMPLE = 4096  # numbers that models are tried on
QUALITIES = (1 / 16, 1.0)
BASED = "+base"
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Model(IntEnum):
    """How numbers are coded."""

    PLANES = 0
    LOGS = 1
    DIFFERENCE = 2
    STEPS = 3
    RATIOS = 4


NAMES = {Model.PLANES: "planes", Model.LOGS: "floats", Model.DIFFERENCE: "floats", Model.STEPS: "bounded", Model.RATIOS: "bounded"}


@dataclass(frozen=True)
class Way:
    """A model with its parameters: whether numbers have signs, how many quarters of the base count, low bits left out, and quality."""

    model: Model
    signed: bool = True
    weight: int = 0
    shift: int = 0
    quality: float = 0.0


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


HEAD = struct.Struct("<BBBBBxxxfI")


def encode(cell: Tensor, base: Tensor | None = None, kind: Kind = "lossless", quality: float = 0.25) -> Encoded:
    """The payload of a contiguous CPU tensor, against the content of the same cell in the parent snapshot if `base` is given.

    Give cells their shape: rows and columns (the last dim; all others are rows) differ in scale, and that saves bytes. A base of any shape is taken as the
    cell's numbers in order. With kind "bounded" floats may be off by what quantised.py and ratios.py say, in terms of `quality`, 1/16 to 1.

    Raises ValueError for tensors that are not contiguous, are elsewhere, differ in dtype or length from their base, or are larger than a cell may be.
    """
    _check(cell, base, quality)
    columns = cell.shape[-1] if cell.dim() > 1 else cell.numel()
    shape = (cell.numel() // max(columns, 1), columns)
    x, old = _words(cell), None if base is None else _words(base)
    form = FORMATS.get(cell.dtype)
    if form is not None and cell.numel() >= SHORT:
        found = _encode_floats(x, old, shape, form, kind, quality)
        if found is not None and len(found[1]) < cell.nbytes:
            return Encoded(found[0], found[1], torch.from_numpy(found[2]).view(cell.dtype))
    sections, based = planes.encode(x, old)
    payload = _head(Way(Model.PLANES, weight=4 * based), still.Marks.NONE, columns) + join([b"", b"", *sections])
    return Encoded("planes" + BASED * based, payload, cell.reshape(-1))


def decode(codec: str, payload: bytes | memoryview, dtype: torch.dtype, count: int, base: Tensor | None = None) -> Tensor:
    """The flat tensor of `count` numbers that a payload holds; `base` is the content that it was encoded against, if its codec names one.

    Raises CodecError for payloads that are damaged, cut off, of an unknown codec, or of another count or dtype; ValueError for a cell too large.
    """
    if count * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"a cell has at most {MAX_BYTES} bytes, not {count * dtype.itemsize}")
    if codec.removesuffix(BASED) not in NAMES.values():
        raise CodecError(f"there is no codec {codec!r}; a newer version of Penstock may have it")
    if codec.endswith(BASED) and (base is None or base.dtype != dtype or base.numel() != count):
        raise CodecError(f"a payload of codec {codec} needs its base, {count} numbers of {dtype}")
    way, marks, columns, data = _split_head(memoryview(payload))
    if NAMES[way.model] != codec.removesuffix(BASED):
        raise CodecError(f"damaged payload: {way.model.name} in codec {codec}")
    word = np.dtype(f"i{dtype.itemsize}")
    old = _words(base.contiguous()) if base is not None and codec.endswith(BASED) else np.zeros(count, word)
    if way.model is Model.PLANES:
        sections = split(data, 2 + dtype.itemsize)[2:]
        return torch.from_numpy(planes.decode(sections, old if way.weight else None, count, word)).view(dtype)
    form = FORMATS.get(dtype)
    if form is None or not columns or count % columns:
        raise CodecError(f"damaged payload: {count} numbers of {dtype} in columns of {columns}")
    sections = split(data, 2 + SECTIONS[way.model])
    moved = still.read(marks, sections[:2], (count // columns, columns))
    return torch.from_numpy(moved.back(_read(way, sections[2:], moved.of(old), moved.shape, form), old)).view(dtype)


SECTIONS = {
    Model.LOGS: logs.SECTIONS, Model.DIFFERENCE: difference.SECTIONS, Model.STEPS: quantised.SECTIONS, Model.RATIOS: ratios.SECTIONS,
}  # fmt: skip


def _encode_floats(
    x: np.ndarray, base: np.ndarray | None, shape: Shape, form: Format, kind: Kind, quality: float
) -> tuple[str, bytes, np.ndarray] | None:
    """Codec, payload and content of a cell of floats; None if too little has moved."""
    old = np.zeros_like(x) if base is None else base
    marks, mark_sections, moved = still.find(x, old, shape)
    left, was = moved.of(x), moved.of(old)
    if not left.size:
        return None
    ways = _rough_ways(left, was, base, form, quality) if kind == "bounded" else _exact_ways(left, base)
    way = _shortest(ways, left, was, moved.shape, form) if len(ways) > 1 and left.size else ways[0]
    sections, content = _write(way, left, was, moved.shape, form)
    based = base is not None and (way.weight > 0 or marks != still.Marks.NONE)
    payload = _head(way, marks, shape[1]) + join(mark_sections + sections)
    if kind == "bounded" and len(payload) > x.nbytes // 2:
        return _encode_floats(x, base, shape, form, "lossless", quality)
    return NAMES[way.model] + BASED * based, payload, moved.back(content, old)


def _exact_ways(x: np.ndarray, base: np.ndarray | None) -> list[Way]:
    signed = bool((x < 0).any())
    if base is None:
        return [Way(Model.LOGS, signed)]
    return [Way(Model.DIFFERENCE, weight=4)] + [Way(Model.LOGS, signed, weight) for weight in (WEIGHTS[:1] if signed else WEIGHTS)]


def _rough_ways(x: np.ndarray, old: np.ndarray, base: np.ndarray | None, form: Format, quality: float) -> list[Way]:
    if base is not None and not ((x < 0).any() or (old < 0).any()):
        return [Way(Model.RATIOS, False, 4, ratios.step_bits(x, old, form, quality), quality)]
    return [Way(Model.STEPS, weight=weight, quality=quality) for weight in ((0,) if base is None else (0, 4))]


def _shortest(ways: list[Way], x: np.ndarray, base: np.ndarray, shape: Shape, form: Format) -> Way:
    """The way that makes a sample shortest: some rows, or a stretch of a single one."""
    rows, columns = shape
    if rows == 1:
        some, of = slice((columns - SAMPLE) // 2, (columns + SAMPLE) // 2) if columns > SAMPLE else slice(None), (1, min(columns, SAMPLE))
        x, base = x[some], base[some]
    else:
        some = slice(None, None, max(x.size // SAMPLE, 1))
        x, base = (np.ascontiguousarray(words.reshape(shape)[some]).reshape(-1) for words in (x, base))
        of = (x.size // columns, columns)
    return min(ways, key=lambda way: sum(map(len, _write(way, x, base, of, form)[0])))


def _write(way: Way, x: np.ndarray, base: np.ndarray, shape: Shape, form: Format) -> tuple[list[bytes], np.ndarray]:
    """Sections and content of a matrix of words."""
    if way.model is Model.LOGS:
        return logs.encode(x, base, shape, Logs(form, way.signed, way.weight)), x
    if way.model is Model.DIFFERENCE:
        return difference.encode(x, base, shape, form), x
    if way.model is Model.RATIOS:
        return ratios.encode(x, base, shape, form, way.shift)
    return quantised.encode(x, base if way.weight else np.zeros_like(x), shape, form, way.quality)


def _read(way: Way, sections: list[memoryview], base: np.ndarray, shape: Shape, form: Format) -> np.ndarray:
    """The matrix of words, flat; raises CodecError."""
    if way.model is Model.LOGS:
        return logs.decode(sections, base, shape, Logs(form, way.signed, way.weight))
    if way.model is Model.DIFFERENCE:
        return difference.decode(sections, base, shape, form)
    if way.model is Model.RATIOS:
        return ratios.decode(sections, base, shape, way.shift)
    return quantised.decode(sections, base if way.weight else np.zeros_like(base), shape, form, way.quality)


def _head(way: Way, marks: int, columns: int) -> bytes:
    return HEAD.pack(way.model, marks, way.signed, way.weight, way.shift, way.quality, columns)


def _split_head(payload: memoryview) -> tuple[Way, int, int, memoryview]:
    """The way, the marks and the columns of a payload, and what follows; raises CodecError."""
    if len(payload) < HEAD.size:
        raise CodecError(f"damaged payload: {len(payload)} bytes, less than its head's {HEAD.size}")
    model, marks, signed, weight, shift, quality, columns = HEAD.unpack_from(payload)
    known = model in list(Model) and signed <= 1 and weight in WEIGHTS and shift < 32
    if not known or (model == Model.STEPS and not QUALITIES[0] <= quality <= QUALITIES[1]):
        raise CodecError("damaged payload: its head says what no writer would")
    return Way(Model(model), bool(signed), weight, shift, quality), marks, columns, payload[HEAD.size :]


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
