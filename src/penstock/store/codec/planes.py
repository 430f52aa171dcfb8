"""Numbers of any kind as byte planes: all lowest bytes, all second ones and so on, each squeezed by itself, as bytes of one significance are alike.

Against a base their differences as integers are taken, if that is shorter, modulo 2^bits and folded so that small ones of either sign have small
bytes. It serves integers, truth values, float64, and whatever is too short for anything better.
"""

from __future__ import annotations

import numpy as np

from penstock.store.codec.sections import expand, squeeze


def encode(x: np.ndarray, base: np.ndarray | None) -> tuple[list[bytes], bool]:
    """The sections, one a byte, of signed integers of 1, 2, 4 or 8 bytes; and whether they are differences from the base."""
    alone = _planes(x)
    if base is None:
        return alone, False
    change = x - base
    against = _planes((change << 1) ^ (change >> (8 * x.itemsize - 1)))
    return (against, True) if sum(map(len, against)) < sum(map(len, alone)) else (alone, False)


def decode(sections: list[memoryview], base: np.ndarray | None, count: int, word: np.dtype) -> np.ndarray:
    """The integers; raises CodecError."""
    bytes_nb = np.empty((count, word.itemsize), np.uint8)
    for place, section in enumerate(sections):
        bytes_nb[:, place] = expand(section, count, np.uint8)
    numbers = bytes_nb.reshape(-1).view(word)
    if base is None:
        return numbers
    return base + ((numbers >> 1 & ~(word.type(-1) << word.type(8 * word.itemsize - 1))) ^ -(numbers & 1))


def _planes(x: np.ndarray) -> list[bytes]:
    return [squeeze(plane) for plane in x.view(np.uint8).reshape(x.size, x.itemsize).T]
