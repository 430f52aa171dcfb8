"""Numbers by their differences from a base: the part of a difference that says something is coded, and below it as many bits as its number has.

A weight moves by as much in 20 steps whether it is large or small; of the difference, counted in places among the floats (formats.py), a small weight
has more bits than a large one. Let 2^e be the size of differences in a row and column (scales.py). In the octave 2^(e+c) of the base, a step of
2^(e-2) is 2^k places, k = mantissa - 2 - c. So

    symbol = (place - base's place) >> k,        the low k bits follow as they are, and k, known from the base, varies from number to number

Symbols are then distributed alike whatever the octave, normal if differences are, and what follows is random: nothing is left to win but by
foretelling the differences themselves. A base below 2^(e+1) says little more than a sign: there k = mantissa - 3, and the symbol, in a list of its
own, is the number's own magnitude in steps of 1/8 octave, and whether its sign is the base's. Numbers out of the symbols' reach are written in full.

Of the low bits, whole bytes that nearly all numbers have are planes; the rest are packed by varbits.py.
"""

from __future__ import annotations

import numpy as np

from penstock.store.codec.blocks import ESCAPE, Offsets, Shape, entropy_bits, escaped, put_escaped, to_symbols
from penstock.store.codec.formats import SINGLE_BIAS, Format, to_single
from penstock.store.codec.scales import fit
from penstock.store.codec.sections import expand, raw, squeeze
from penstock.store.codec.varbits import read_bits, words_of, write_bits

OCTAVE = 8  # steps of a log difference
RMS = 11  # from the mean log of normal numbers to their root mean square, in such steps, and half an octave for rounding
MIDDLE = 127  # the symbol of no difference
LOWEST = 96  # steps from the least magnitude that a number near zero may have to 2^e
ALL = 2**32 - 1
FEW = 0.05  # share of the numbers that may get more low bits than they need
SECTIONS = 6


def encode(x: np.ndarray, base: np.ndarray, shape: Shape, form: Format) -> list[bytes]:
    """The sections of a matrix of words."""
    offsets = scales_of(x, base, shape, form)
    widths, close, whole = _widths(base, offsets, form)
    most, kind = form.mantissa - 3 - 8 * whole, np.dtype("u1" if whole == 2 or form.bits == 16 else "u4")
    symbols, rest, planes = np.empty(x.size, np.uint8), np.empty(x.size, kind), np.empty(x.size if whole else 0, f"u{max(whole, 1)}")
    far, near = [], []
    for part, scale in offsets.blocks():
        symbol, change = _symbols(x[part], base[part], widths[part], close[part], _size(scale, form), form)
        symbols[part] = symbol
        far.append(symbol.compress(~close[part]))
        near.append(symbol.compress(close[part]))
        if whole:
            np.copyto(planes[part], change, casting="unsafe")
            change >>= 8 * whole
            widths[part] -= 8 * whole
        np.bitwise_and(change.astype(kind), ~(kind.type(ALL >> (32 - 8 * kind.itemsize)) << widths[part].astype(kind)), out=rest[part])
    bits = write_bits(rest, widths, most)
    return [
        offsets.squeezed(), squeeze(np.concatenate(far)), squeeze(np.concatenate(near)), planes.tobytes(), bits.tobytes(), escaped(x, symbols),
    ]  # fmt: skip


def decode(sections: list[memoryview], base: np.ndarray, shape: Shape, form: Format) -> np.ndarray:
    """The matrix of words, flat; raises CodecError."""
    offsets = Offsets.expanded(sections[0], shape)
    widths, close, whole = _widths(base, offsets, form)
    n_near = int(np.count_nonzero(close))
    far, near = expand(sections[1], base.size - n_near, np.uint8), expand(sections[2], n_near, np.uint8)
    planes = raw(sections[3], base.size if whole else 0, np.dtype(f"u{max(whole, 1)}"))
    wide = widths - 8 * whole
    rest = read_bits(raw(sections[4], words_of(wide), np.uint64), wide, form.mantissa - 3 - 8 * whole)
    symbols, words = np.empty(base.size, np.uint8), np.empty(base.size, form.word)
    for part, scale in offsets.blocks():
        where, elsewhere = np.flatnonzero(close[part]), np.flatnonzero(~close[part])
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
        number[where] = _near_numbers(symbol.take(where), base[part].take(where), _size(scale.take(where), form), form) | low.take(where)
        np.copyto(words[part], number, casting="unsafe")
    put_escaped(words, symbols, sections[5])
    return words


def estimate(x: np.ndarray, base: np.ndarray, shape: Shape, form: Format) -> float:
    """About how many bits a number takes, from a matrix of some."""
    offsets = scales_of(x, base, shape, form)
    widths, close, _ = _widths(base, offsets, form)
    sizes = np.concatenate([_size(scale, form) for _, scale in offsets.blocks()])
    symbols, _ = _symbols(x, base, widths, close, sizes, form)
    coded = sum(entropy_bits(symbols.compress(some)) for some in (close, ~close)) + form.bits * np.count_nonzero(symbols == ESCAPE)
    return (coded + float(widths.sum(dtype=np.int64))) / x.size


def scales_of(x: np.ndarray, base: np.ndarray, shape: Shape, form: Format) -> Offsets:
    """Log magnitudes of the differences as floats, by row and column, in steps of 1/8 octave."""

    def logs(rows: slice, columns: slice) -> np.ndarray:
        return log_differences(x.reshape(shape)[rows, columns], base.reshape(shape)[rows, columns], form)

    return fit(logs, shape, OCTAVE, OCTAVE // 4)


def log_differences(x: np.ndarray, base: np.ndarray, form: Format) -> np.ndarray:
    """Log magnitudes of differences as floats (int16, 1/8 octave)."""
    with np.errstate(all="ignore"):
        change = to_single(x, form) - to_single(base, form)
    return ((change.view(np.int32) & 0x7FFFFFFF) >> 20).astype(np.int16)


def _size(scale: np.ndarray, form: Format) -> np.ndarray:
    """e, the exponent (biased, int16) of the size of differences."""
    return ((scale + RMS) >> 3) + (form.bias - SINGLE_BIAS)


def _widths(base: np.ndarray, offsets: Offsets, form: Format) -> tuple[np.ndarray, np.ndarray, int]:
    """k: low bits of every number (uint8); which numbers' base is near zero; and how many whole bytes of low bits are planes."""
    widths, close = np.empty(base.size, np.uint8), np.empty(base.size, bool)
    for part, scale in offsets.blocks():
        octave = ((base[part] & form.magnitudes) >> form.mantissa).astype(np.int16)
        octave -= _size(scale, form)
        np.less_equal(octave, 0, out=close[part])
        np.clip(octave, 1, form.mantissa - 2, out=octave)
        widths[part] = np.subtract(form.mantissa - 2, octave, out=octave)
    whole = (form.mantissa - 3) // 8
    while whole and np.count_nonzero(widths < 8 * whole) > FEW * widths.size:
        whole -= 1
    return np.maximum(widths, 8 * whole, out=widths), close, whole


def _symbols(
    x: np.ndarray, base: np.ndarray, widths: np.ndarray, close: np.ndarray, size: np.ndarray, form: Format
) -> tuple[np.ndarray, np.ndarray]:
    """Symbols of a flat block, and what low bits are taken from (int32)."""
    where = np.flatnonzero(close)
    change = np.subtract(x, base, dtype=np.int32)
    its = x.take(where)
    change[where] = its
    symbols = to_symbols((change >> widths.astype(np.int32)) + MIDDLE)
    symbols[where] = _near_symbols(its, base.take(where), size.take(where), form)
    return symbols, change


def _near_symbols(x: np.ndarray, base: np.ndarray, size: np.ndarray, form: Format) -> np.ndarray:
    """Symbols of numbers whose base is near zero."""
    height = ((x & form.magnitudes) >> (form.mantissa - 3)).astype(np.int16) - (8 * size - LOWEST)
    return to_symbols(2 * height + ((x ^ base) < 0))


def _near_numbers(symbol: np.ndarray, base: np.ndarray, size: np.ndarray, form: Format) -> np.ndarray:
    """Words (int32) of such numbers but for their low bits."""
    height = (symbol >> 1) + (8 * size - LOWEST)
    sign = (base < 0) ^ (symbol & 1)
    return height.astype(np.int32) << (form.mantissa - 3) | sign.astype(np.int32) << (form.bits - 1)
