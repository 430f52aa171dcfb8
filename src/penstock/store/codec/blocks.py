"""What models of a matrix have in common: offsets of rows and columns, blocks that a core's cache holds through all steps, symbols, and escapes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from penstock.store.codec.sections import CodecError, expand, squeeze

BLOCK = 1 << 15
OFFSETS = struct.Struct("<hBB")
ESCAPE = 255  # the symbol of a number that is written in full

Shape = tuple[int, int]


class Offsets:
    """What rows and columns of a matrix foretell together: the sum of a row's and a column's int16 number, multiples of a unit."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray, unit: int) -> None:
        self.rows, self.columns, self.unit = rows, columns, unit

    @property
    def shape(self) -> Shape:
        """Of the matrix."""
        return self.rows.size, self.columns.size

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Each block's place in the flat matrix, and the sums there: whole rows, or stretches of a single row."""
        rows, columns = self.shape
        if rows == 1:
            for start in range(0, columns, BLOCK):
                part = slice(start, min(start + BLOCK, columns))
                yield part, self.columns[part] + self.rows
            return
        high = max(BLOCK // max(columns, 1), 1)
        for row in range(0, rows, high):
            sums = self.rows[row : row + high, None] + self.columns
            yield slice(row * columns, row * columns + sums.size), sums.reshape(-1)

    def squeezed(self) -> bytes:
        """As a section: the middle row's, and steps from there, bytes if they fit, else int16."""
        middle = np.sort(self.rows)[self.rows.size // 2] if self.rows.size else np.int16(0)
        steps = np.concatenate([self.rows - middle, self.columns]) // self.unit
        short = steps.astype(np.int8)
        narrow = bool((short == steps).all())
        return OFFSETS.pack(middle, self.unit, 2 - narrow) + squeeze(short if narrow else steps)

    @classmethod
    def expanded(cls, section: memoryview, shape: Shape) -> Offsets:
        """Read from a section; raises CodecError."""
        middle, unit, width = OFFSETS.unpack_from(section) if len(section) > OFFSETS.size else (0, 0, 0)
        if width not in (1, 2):
            raise CodecError(f"damaged payload: offsets of {width} bytes")
        both = expand(section[OFFSETS.size :], sum(shape), np.dtype(f"i{width}")).astype(np.int16) * np.int16(unit)
        return cls(both[: shape[0]] + np.int16(middle), both[shape[0] :], unit)


def to_symbols(numbers: np.ndarray) -> np.ndarray:
    """Integers as symbols: bytes, ESCAPE for what is not in 0 to 254."""
    return np.minimum(numbers.view(f"u{numbers.itemsize}"), ESCAPE).astype(np.uint8)


def entropy_bits(symbols: np.ndarray) -> float:
    """Bits that symbols take at least, each coded by itself."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(counts @ (np.log2(max(symbols.size, 1)) - np.log2(counts)))


def escaped(words: np.ndarray, symbols: np.ndarray) -> bytes:
    """The words with the symbol ESCAPE."""
    return words[symbols == ESCAPE].tobytes()


def put_escaped(words: np.ndarray, symbols: np.ndarray, section: memoryview) -> None:
    """Write the words with the symbol ESCAPE where they belong."""
    where = np.flatnonzero(symbols == ESCAPE)
    if len(section) != where.size * words.itemsize:
        raise CodecError(f"damaged payload: {len(section)} bytes of numbers in full, for {where.size} of them")
    words[where] = np.frombuffer(section, words.dtype)
