"""Bounded error for signed numbers: a difference from the base, or the number itself, as a small multiple of a step that fits its row and column.

    step = quality · 2^(row + column),        symbol = round((x - base) / step),        decoded = base + symbol · step,
    | decoded - x |  ≤  step / 2              (and half a unit in the last place)

2^(row + column), in quarters of an octave, is about the root mean square of the differences in that row and column (scales.py): a step for the whole
matrix would drown the rows of rare tokens, whose moments, however small, Adam divides by their own size. Normal differences take log2(1 / quality) +
2.05 bits: 4.05 at 0.25. Numbers of more than 127 steps, and what is not finite, are written in full.

The base is what an earlier snapshot decodes to, so errors do not add up along a chain. All is float32 arithmetic of single operations, the same on
every processor; steps are held between 2^-100 and 2^100, so none is on the denormal.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.store.codec.blocks import ESCAPE, Offsets, Shape, escaped, put_escaped, to_symbols
from penstock.store.codec.difference import log_differences, scales_of
from penstock.store.codec.formats import SINGLE_BIAS, SINGLE_MANTISSA, Format, from_single, to_single
from penstock.store.codec.sections import expand, squeeze

RMS = 7  # from the mean log of normal numbers to their root mean square, in steps of a log difference
MIDDLE = 127  # the symbol of no difference
LIMIT = 96  # octaves, quality left out
SECTIONS = 3
_QUARTER = math.sqrt(math.sqrt(2.0))  # exactly rounded everywhere, as `2 ** 0.25` need not be
QUARTERS = np.array([1.0, _QUARTER, math.sqrt(2.0), math.sqrt(2.0) * _QUARTER])


def size_of(x: np.ndarray, base: np.ndarray, form: Format) -> float:
    """Mean log magnitude of differences, in steps."""
    return float(log_differences(x, base, form).mean())


def encode(x: np.ndarray, base: np.ndarray, shape: Shape, form: Format, quality: float) -> tuple[list[bytes], np.ndarray]:
    """The sections of a matrix of words, and what they decode to."""
    offsets = scales_of(x, base, shape, form)
    symbols, content = np.empty(x.size, np.uint8), np.empty_like(x)
    with np.errstate(all="ignore"):
        for part, scale in offsets.blocks():
            old, step = to_single(base[part], form), _steps(scale, quality)
            multiple = np.rint((to_single(x[part], form) - old) / step)
            multiple = np.fmin(np.fmax(multiple, -1 - MIDDLE), 1 + MIDDLE) + np.float32(0.0)  # NaN to a bound, and -0 to 0
            symbols[part] = to_symbols(multiple.astype(np.int16) + MIDDLE)
            content[part] = from_single(multiple * step + old, form)
    symbols[(content & form.magnitudes) >= form.infinity] = ESCAPE
    np.copyto(content, x, where=symbols == ESCAPE)
    return [offsets.squeezed(), squeeze(symbols), escaped(x, symbols)], content


def decode(sections: list[memoryview], base: np.ndarray, shape: Shape, form: Format, quality: float) -> np.ndarray:
    """The matrix of words, flat; raises CodecError."""
    offsets = Offsets.expanded(sections[0], shape)
    symbols, words = expand(sections[1], base.size, np.uint8), np.empty_like(base)
    with np.errstate(all="ignore"):
        for part, scale in offsets.blocks():
            multiple = symbols[part].astype(np.float32)
            multiple -= MIDDLE
            words[part] = from_single(multiple * _steps(scale, quality) + to_single(base[part], form), form)
    put_escaped(words, symbols, sections[2])
    return words


def _steps(scale: np.ndarray, quality: float) -> np.ndarray:
    """Steps (float32) of log magnitudes in 1/8 octave, which are multiples of 1/4."""
    quarter = ((scale + RMS) >> 1).astype(np.int32)
    words = np.clip((quarter >> 2) - SINGLE_BIAS, -LIMIT, LIMIT) << SINGLE_MANTISSA
    words += (QUARTERS * quality).astype(np.float32).view(np.int32).take(quarter & 3)
    return words.view(np.float32)
