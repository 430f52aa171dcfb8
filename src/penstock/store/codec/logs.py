"""Numbers by their magnitudes: of the logarithm what row, column and base foretell is taken away, the rest is coded; low bits follow as they are.

    symbol = |x| >> s  -  (a · (|base| >> s) / 4 + row + column)            |x|: the float's place among floats (formats.py); a = 0, 3 or 4

For Adam's first moment, of which a base 20 steps back tells nothing (a = 0), this is within 0.5 % of what normal numbers of known scale take; their
sign and low bits are random. For the second moment a = 4 where it moves slowly (β₂ = 0.999), 3 where it forgets quickly (0.95).

Symbols are bytes, of 1/16 octave for signed numbers and 1/8 for others, so that low bits and sign make whole bytes and a nibble. Numbers out of their
reach, zeros mostly, are written in full.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.store.codec.blocks import ESCAPE, Offsets, Shape, entropy_bits, escaped, put_escaped, to_symbols
from penstock.store.codec.formats import Format
from penstock.store.codec.scales import fit
from penstock.store.codec.sections import expand, raw, squeeze

MIDDLE = 166  # the symbol of a magnitude that is as foretold: magnitudes fall short of it by more octaves than they exceed it
REST = {(32, 23): 20, (16, 10): 8, (16, 7): 4}  # bits of a number, its sign among them, that follow as they are
WEIGHTS = (0, 3, 4)
SECTIONS = 5


@dataclass(frozen=True)
class Logs:
    """How a matrix is taken: whether numbers have signs, and how many quarters the base's logarithm counts."""

    form: Format
    signed: bool
    weight: int

    @property
    def bits(self) -> int:
        """Bits of a number that follow as they are, its sign among them."""
        return REST[self.form.bits, self.form.mantissa]

    @property
    def shift(self) -> int:
        """Low bits of magnitudes (s) that are not in symbols."""
        return self.bits - self.signed

    def heights(self, words: np.ndarray) -> np.ndarray:
        """Log magnitudes (int16) in steps of 2^shift places."""
        return ((words & self.form.magnitudes) >> self.shift).astype(np.int16)

    def foretold(self, base: np.ndarray) -> np.ndarray:
        """What of a base's log magnitudes counts."""
        height = self.heights(base)
        if self.weight != 4:
            height *= self.weight
            height >>= 2
        return height

    def scales_of(self, x: np.ndarray, base: np.ndarray, shape: Shape) -> Offsets:
        """What rows and columns foretell beyond the base."""

        def logs(rows: slice, columns: slice) -> np.ndarray:
            found = self.heights(x.reshape(shape)[rows, columns])
            if self.weight:
                found -= self.foretold(base.reshape(shape)[rows, columns])
            return found

        octave = 1 << (self.form.mantissa - self.shift)
        return fit(logs, shape, octave, max(octave // 4, 1) if self.signed else 1)


def estimate(x: np.ndarray, base: np.ndarray, shape: Shape, how: Logs) -> float:
    """About how many bits a number takes, from a matrix of some."""
    _, symbols = _symbols(x, base, shape, how)
    return how.bits + (entropy_bits(symbols) + how.form.bits * np.count_nonzero(symbols == ESCAPE)) / x.size


def encode(x: np.ndarray, base: np.ndarray, shape: Shape, how: Logs) -> list[bytes]:
    """The sections of a matrix of words."""
    form, wide = how.form, how.form.bits == 32
    offsets, symbols = _symbols(x, base, shape, how)
    whole, nibbles = np.empty(x.size, np.uint16 if wide else np.uint8), np.empty(x.size, np.uint8)
    for part, _ in offsets.blocks():
        rest = x[part] & ((1 << how.shift) - 1)
        if how.signed:
            rest |= ((x[part] >> (form.bits - 1)) & 1) << how.shift
        np.copyto(whole[part], rest, casting="unsafe")
        np.copyto(nibbles[part], rest >> 16 if wide else rest, casting="unsafe")
    planes = [whole.tobytes() if how.bits >= 8 else b"", pack_nibbles(nibbles) if how.bits % 8 else b""]
    return [offsets.squeezed(), squeeze(symbols), *planes, escaped(x, symbols)]


def decode(sections: list[memoryview], base: np.ndarray, shape: Shape, how: Logs) -> np.ndarray:
    """The matrix of words, flat; raises CodecError."""
    form, bits, count = how.form, how.bits, shape[0] * shape[1]
    offsets = Offsets.expanded(sections[0], shape)
    symbols = expand(sections[1], count, np.uint8)
    whole = raw(sections[2], count if bits >= 8 else 0, np.uint16 if form.bits == 32 else np.uint8)
    nibbles = unpack_nibbles(raw(sections[3], -(-count // 2) if bits % 8 else 0, np.uint8), count)
    words = np.empty(count, form.word)
    for part, place in offsets.blocks():
        place += symbols[part]
        place -= MIDDLE
        if how.weight:
            place += how.foretold(base[part])
        number = place.astype(np.int32)
        number <<= how.shift
        rest = whole[part].astype(np.int32) if bits >= 8 else np.zeros(1, np.int32)
        if bits % 8:
            rest = rest | nibbles[part].astype(np.int32) << (bits - 4)
        number |= rest & ((1 << how.shift) - 1)
        if how.signed:
            number |= rest >> how.shift << (form.bits - 1)
        np.copyto(words[part], number, casting="unsafe")
    put_escaped(words, symbols, sections[4])
    return words


def _symbols(x: np.ndarray, base: np.ndarray, shape: Shape, how: Logs) -> tuple[Offsets, np.ndarray]:
    offsets, symbols = how.scales_of(x, base, shape), np.empty(x.size, np.uint8)
    for part, foretold in offsets.blocks():
        place = how.heights(x[part])
        place -= foretold - MIDDLE
        if how.weight:
            place -= how.foretold(base[part])
        symbols[part] = to_symbols(place)
    return offsets, symbols


def pack_nibbles(nibbles: np.ndarray) -> bytes:
    """Numbers of four bits, two in a byte: one of each half of the list."""
    half = -(-nibbles.size // 2)
    packed = nibbles[:half].copy()
    packed[: nibbles.size - half] |= nibbles[half:] << 4
    return packed.tobytes()


def unpack_nibbles(packed: np.ndarray, count: int) -> np.ndarray:
    """The numbers in `pack_nibbles`' bytes."""
    return np.concatenate([packed & 15, packed >> 4])[:count]
