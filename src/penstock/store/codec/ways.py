"""The models of a cell's floats, and which to take: the one that makes a sample of the cell shortest.

Of a matrix some 64 rows and columns are looked at, of a list a stretch. The entropy of each model's symbols on these, and the low bits that follow
them, tell within some tenths of a bit a number what the whole takes, for a few hundredths of the work on a cell of 1 MiB.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from penstock.store.codec import difference, logs, quantised, ratios
from penstock.store.codec.blocks import Shape
from penstock.store.codec.formats import Format
from penstock.store.codec.logs import WEIGHTS, Logs
from penstock.store.codec.sections import CodecError

SIDE = 64  # rows and columns that models are tried on
SAMPLE = SIDE * SIDE
QUALITIES = (1 / 16, 1.0)
HEAD = struct.Struct("<BBBBBxxxfI")


class Model(IntEnum):
    """How numbers are coded."""

    PLANES = 0
    LOGS = 1
    DIFFERENCE = 2
    STEPS = 3
    RATIOS = 4


SECTIONS = {
    Model.LOGS: logs.SECTIONS, Model.DIFFERENCE: difference.SECTIONS, Model.STEPS: quantised.SECTIONS, Model.RATIOS: ratios.SECTIONS,
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A model with its parameters: whether numbers have signs, how many quarters of the base count, low bits left out, and quality."""

    model: Model
    signed: bool = True
    weight: int = 0
    shift: int = 0
    quality: float = 0.0

    def write(self, x: np.ndarray, base: np.ndarray, shape: Shape, form: Format) -> tuple[list[bytes], np.ndarray]:
        """The sections of a flat matrix of words, and what they decode to."""
        if not x.size:
            return [b""] * SECTIONS[self.model], x
        if self.model is Model.LOGS:
            return logs.encode(x, base, shape, Logs(form, self.signed, self.weight)), x
        if self.model is Model.DIFFERENCE:
            return difference.encode(x, base, shape, form), x
        if self.model is Model.RATIOS:
            return ratios.encode(x, base, shape, form, self.shift)
        return quantised.encode(x, base if self.weight else np.zeros_like(x), shape, form, self.quality)

    def read(self, sections: list[memoryview], base: np.ndarray, shape: Shape, form: Format) -> np.ndarray:
        """The flat matrix of words; raises CodecError."""
        if not base.size:
            return base
        if self.model is Model.LOGS:
            return logs.decode(sections, base, shape, Logs(form, self.signed, self.weight))
        if self.model is Model.DIFFERENCE:
            return difference.decode(sections, base, shape, form)
        if self.model is Model.RATIOS:
            return ratios.decode(sections, base, shape, self.shift)
        return quantised.decode(sections, base if self.weight else np.zeros_like(base), shape, form, self.quality)

    def packed(self, marks: int, columns: int) -> bytes:
        """The head of a payload, with what is marked as still, and the columns of the matrix."""
        return HEAD.pack(self.model, marks, self.signed, self.weight, self.shift, self.quality, columns)

    @classmethod
    def unpacked(cls, payload: memoryview) -> tuple[Way, int, int]:
        """The way, the marks and the columns that a payload's head tells; raises CodecError."""
        if len(payload) < HEAD.size:
            raise CodecError(f"damaged payload: {len(payload)} bytes, less than its head's {HEAD.size}")
        model, marks, signed, weight, shift, quality, columns = HEAD.unpack_from(payload)
        known = model in list(Model) and signed <= 1 and weight in WEIGHTS and shift < 32
        if not known or (model == Model.STEPS and not QUALITIES[0] <= quality <= QUALITIES[1]):
            raise CodecError("damaged payload: its head says what no writer would")
        return cls(Model(model), bool(signed), weight, shift, quality), marks, columns


def exact_way(x: np.ndarray, base: np.ndarray, based: bool, shape: Shape, form: Format) -> Way:
    """The way without error that seems shortest; `based`: whether there is a base to count on."""
    signed = bool((x < 0).any())
    if not (based and x.size):
        return Way(Model.LOGS, signed)
    some, was, of = _sample(x, base, shape)
    ways = {Way(Model.DIFFERENCE, weight=4): difference.estimate(some, was, of, form)}
    for weight in WEIGHTS[:1] if signed else WEIGHTS[1:]:
        ways[Way(Model.LOGS, signed, weight)] = logs.estimate(some, was, of, Logs(form, signed, weight))
    return min(ways, key=lambda way: ways[way])


def rough_way(x: np.ndarray, base: np.ndarray, based: bool, shape: Shape, form: Format, quality: float) -> Way:
    """The way with bounded error that suits the sign; of numbers with signs the difference is taken, or the number itself if that is smaller."""
    if not x.size:
        return Way(Model.STEPS, quality=quality)
    if based and not ((x < 0).any() or (base < 0).any()):
        return Way(Model.RATIOS, False, 4, ratios.step_bits(x, base, form, quality), quality)
    some, was, _ = _sample(x, base, shape)
    nearer = based and quantised.size_of(some, was, form) < quantised.size_of(some, np.zeros_like(was), form)
    return Way(Model.STEPS, weight=4 * nearer, quality=quality)


def _sample(x: np.ndarray, base: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray, Shape]:
    """A smaller matrix: some rows and columns, or a stretch of a single row."""
    if shape[0] == 1:
        first = max(x.size - SAMPLE, 0) // 2
        return x[first:][:SAMPLE], base[first:][:SAMPLE], (1, min(x.size, SAMPLE))
    rows, columns = (slice(None, None, max(size // SIDE, 1)) for size in shape)
    some, was = (np.ascontiguousarray(numbers.reshape(shape)[rows, columns]) for numbers in (x, base))
    return some.reshape(-1), was.reshape(-1), (some.shape[0], some.shape[1])
