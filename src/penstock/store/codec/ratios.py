"""Bounded error for numbers that are not negative, second moments above all: their places among the floats in steps of a power of two.

    symbol = round((x - base) / 2^s) - row - column,        decoded = base + (symbol + row + column) · 2^s,
    | decoded - x |  ≤  2^(s-1)                                                     all counted in places (formats.py)

Places are a logarithm, 2^mantissa of them an octave, so the bound is of the ratio: 2^s is at most `quality` times the root mean square of the
cell's differences in places, and at most `quality` / 2 of an octave (at 0.25: decoded / x is between 1 ± 1/16). What is zero stays zero, and nothing
becomes zero, negative or infinite: such numbers, and those out of the symbols' reach, are written in full. The base is what an earlier snapshot
decodes to, so errors do not add up along a chain.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.store.codec.blocks import ESCAPE, Offsets, Shape, escaped, put_escaped, to_symbols
from penstock.store.codec.formats import Format
from penstock.store.codec.scales import fit
from penstock.store.codec.sections import expand, squeeze

MIDDLE = 127  # the symbol of no difference
SPREAD = 8  # steps, about the spread of numbers, in whose terms scales.py knows outliers
NORMAL = 1.25  # root mean square of normal numbers over their mean magnitude
SECTIONS = 3


def step_bits(x: np.ndarray, base: np.ndarray, form: Format, quality: float) -> int:
    """s for a cell."""
    octave = form.mantissa - math.ceil(math.log2(2 / quality))
    size = float(np.minimum(np.abs(np.subtract(x, base, dtype=np.int32)), 1 << form.mantissa).mean()) * NORMAL * quality
    return min(max(math.floor(math.log2(max(size, 1.0))), 0), octave)


def encode(x: np.ndarray, base: np.ndarray, shape: Shape, form: Format, shift: int) -> tuple[list[bytes], np.ndarray]:
    """The sections of a matrix of words that are not negative, and what they decode to."""

    def logs(rows: slice, columns: slice) -> np.ndarray:
        new, old = (words.reshape(shape)[rows, columns] for words in (x, base))
        return np.clip(_steps(new, old, shift), -32768, 32767).astype(np.int16)

    offsets = fit(logs, shape, SPREAD, 1)
    symbols, content = np.empty(x.size, np.uint8), np.empty_like(x)
    for part, offset in offsets.blocks():
        symbols[part] = to_symbols(_steps(x[part], base[part], shift) - offset + MIDDLE)
        number = _number(symbols[part], offset, base[part], shift)
        symbols[part][(x[part] == 0) | (number <= 0) | (number >= form.infinity)] = ESCAPE
        np.copyto(content[part], number, casting="unsafe")
    np.copyto(content, x, where=symbols == ESCAPE)
    return [offsets.squeezed(), squeeze(symbols), escaped(x, symbols)], content


def decode(sections: list[memoryview], base: np.ndarray, shape: Shape, shift: int) -> np.ndarray:
    """The matrix of words, flat; raises CodecError."""
    offsets = Offsets.expanded(sections[0], shape)
    symbols, words = expand(sections[1], base.size, np.uint8), np.empty_like(base)
    for part, offset in offsets.blocks():
        np.copyto(words[part], _number(symbols[part], offset, base[part], shift), casting="unsafe")
    put_escaped(words, symbols, sections[2])
    return words


def _steps(x: np.ndarray, base: np.ndarray, shift: int) -> np.ndarray:
    """Differences as the nearest multiple of 2^shift (int32)."""
    steps = np.subtract(x, base, dtype=np.int32)
    if shift:
        steps >>= shift - 1
        steps += 1
        steps >>= 1
    return steps


def _number(symbols: np.ndarray, offset: np.ndarray, base: np.ndarray, shift: int) -> np.ndarray:
    """Words (int32) of symbols."""
    number = symbols.astype(np.int32)
    number -= MIDDLE
    number += offset
    number <<= shift
    number += base
    return number
