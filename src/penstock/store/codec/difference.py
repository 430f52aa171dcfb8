"""Numbers by their differences from a base: the part of a difference that says something is coded, and below it as many bits as its number has.

A weight moves by as much in 20 steps whether it is large or small; of the difference, counted in places among the floats (formats.py), a small weight
has more bits than a large one. Let 2^e be the size of differences in a row and column (scales.py). In the octave 2^(e+c) of the base, a step of 2^(e-2) is
2^k places, k = mantissa - 2 - c. So

    symbol = (place - base's place) >> k,        the low k bits follow as they are, and k, known from the base, varies from number to number

Symbols are then distributed alike whatever the octave, normal if differences are, and what follows is random: nothing is left to win but by foretelling
the differences themselves. A base below 2^(e+1) says little more than a sign: there k = mantissa - 3, and the symbol, in a list of its own, is the
number's own magnitude in steps of 1/8 octave, and whether its sign is the base's. Numbers out of the symbols' reach are written in full.

Of the low bits, whole bytes that nearly all numbers have are planes; the rest are packed by varbits.py.
"""

from __future__ import annotations

import numpy as np

from penstock.store.codec.blocks import ESCAPE, Offsets, Shape, escaped, put_escaped, to_symbols
from penstock.store.codec.formats import SINGLE_BIAS, Format, to_single
from penstock.store.codec.scales import fit
from penstock.store.codec.sections import expand, raw, squeeze
from penstock.store.codec.varbits import read_bits, words_of, write_bits

OCTAVE = 8  # steps of a log difference
RMS = 11  # from the mean log of normal numbers to their root mean square, in such steps, and half an octave for rounding
MIDDLE = 127  # the symbol of no difference
LOWEST = 96  # steps from the least magnitude that a number near zero may have to 2^e
FEW = 0.05  # share of the numbers that may get more low bits than they need
SECTIONS = 6


def encode(x: np.ndarray, base: np.ndarray, shape: Shape, form: Format) -> list[bytes]:
    """The sections of a matrix of words."""
    offsets = scales_of(x, base, shape, form)
    octaves = _octaves(base, offsets, form)
    widths, whole = _widths(octaves, form)
    symbols, rest = np.empty(x.size, np.uint8), np.empty(x.size, np.uint32)
    far, near = [], []
    for part, _ in offsets.blocks():
        close, width = octaves[part] <= 0, widths[part].astype(np.int32)
        where, elsewhere = np.flatnonzero(close), np.flatnonzero(~close)
        change = np.subtract(x[part], base[part], dtype=np.int32)
        its, was = x[part].take(where).astype(np.int32), base[part].take(where).astype(np.int32)
        change[where] = its
        symbol = symbols[part]
        to_symbols((change >> width) + MIDDLE, symbol)
        symbol[where] = _near_symbols(its, was, octaves[part].take(where), form)
        np.bitwise_and(change, ~(np.int32(-1) << width), out=rest[part].view(np.int32))
        far.append(symbol.take(elsewhere))
        near.append(symbol.take(where))
    planes = rest.astype(f"u{whole}").tobytes() if whole else b""
    rest >>= 8 * whole
    most = form.mantissa - 3 - 8 * whole
    bits = write_bits(rest.astype(np.uint8) if most <= 8 else rest, widths - 8 * whole, most).tobytes()
    return [offsets.squeezed(), squeeze(np.concatenate(far)), squeeze(np.concatenate(near)), planes, bits, escaped(x, symbols)]


def decode(sections: list[memoryview], base: np.ndarray, shape: Shape, form: Format) -> np.ndarray:
    """The matrix of words, flat; raises CodecError."""
    offsets = Offsets.expanded(sections[0], shape)
    octaves = _octaves(base, offsets, form)
    widths, whole = _widths(octaves, form)
    n_near = np.count_nonzero(octaves <= 0)
    far, near = expand(sections[1], base.size - n_near, np.uint8), expand(sections[2], n_near, np.uint8)
    planes = raw(sections[3], base.size if whole else 0, f"u{max(whole, 1)}")
    wide = widths - 8 * whole
    rest = read_bits(raw(sections[4], words_of(wide), np.uint64), wide, form.mantissa - 3 - 8 * whole)
    symbols, words = np.empty(base.size, np.uint8), np.empty(base.size, form.word)
    for part, _ in offsets.blocks():
        close = octaves[part] <= 0
        where, elsewhere = np.flatnonzero(close), np.flatnonzero(~close)
        symbol = symbols[part]
        symbol[elsewhere], far = far[: elsewhere.size], far[elsewhere.size :]
        symbol[where], near = near[: where.size], near[where.size :]
        low = rest[part].astype(np.int32)
        if whole:
            low <<= 8 * whole
            low |= planes[part]
        number = symbol.astype(np.int32)
        number -= MIDDLE
        number <<= widths[part].astype(np.int32)
        number |= low
        number += base[part]
        was = base[part].take(where).astype(np.int32)
        number[where] = _near_numbers(symbol.take(where), was, octaves[part].take(where), form) | low.take(where)
        np.copyto(words[part], number, casting="unsafe")
    put_escaped(words, symbols, sections[5])
    return words


def scales_of(x: np.ndarray, base: np.ndarray, shape: Shape, form: Format) -> Offsets:
    """Log magnitudes of the differences as floats, by row and column, in steps of 1/8 octave."""

    def logs(rows: slice, columns: slice) -> np.ndarray:
        new, old = (np.ascontiguousarray(words.reshape(shape)[rows, columns]) for words in (x, base))
        with np.errstate(all="ignore"):
            change = to_single(new, form) - to_single(old, form)
        return ((change.view(np.int32) & 0x7FFFFFFF) >> 20).astype(np.int16)

    return fit(logs, shape, OCTAVE)


def _octaves(base: np.ndarray, offsets: Offsets, form: Format) -> np.ndarray:
    """c: the octave of each number's base above that of the size of differences (int16)."""
    octaves = np.empty(base.size, np.int16)
    for part, size in offsets.blocks():
        size += RMS
        size >>= 3
        size += form.bias - SINGLE_BIAS
        np.subtract(((base[part] & form.magnitudes) >> form.mantissa).astype(np.int16), size, out=octaves[part])
    return octaves


def _widths(octaves: np.ndarray, form: Format) -> tuple[np.ndarray, int]:
    """k: low bits of every number (uint8), and how many whole bytes of them are planes."""
    widths = np.subtract(form.mantissa - 2, np.clip(octaves, 1, form.mantissa - 2)).astype(np.uint8)
    whole = (form.mantissa - 3) // 8
    while whole and np.count_nonzero(widths < 8 * whole) > FEW * widths.size:
        whole -= 1
    return np.maximum(widths, 8 * whole, out=widths), whole


def _near_symbols(x: np.ndarray, base: np.ndarray, octaves: np.ndarray, form: Format) -> np.ndarray:
    """Symbols of numbers whose base is near zero."""
    height = ((x & form.magnitudes) >> (form.mantissa - 3)) - _zero(base, octaves, form)
    symbol = 2 * height + (((x ^ base) >> (form.bits - 1)) & 1)
    return np.minimum(symbol.view(np.uint32), ESCAPE).astype(np.uint8)


def _near_numbers(symbol: np.ndarray, base: np.ndarray, octaves: np.ndarray, form: Format) -> np.ndarray:
    """Words of such numbers but for their low bits."""
    height = (symbol.astype(np.int32) >> 1) + _zero(base, octaves, form)
    sign = (base >> (form.bits - 1) ^ symbol) & 1
    return height << (form.mantissa - 3) | sign << (form.bits - 1)


def _zero(base: np.ndarray, octaves: np.ndarray, form: Format) -> np.ndarray:
    """Log magnitude, in steps of 1/8 octave, of symbol 0 of numbers near zero."""
    return 8 * (((base & form.magnitudes) >> form.mantissa) - octaves) - LOWEST
