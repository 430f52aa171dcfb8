"""A matrix in blocks that a core's cache holds through all steps, and what is common to the models that code one: symbols, and numbers beyond their reach."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from penstock.store.codec.sections import CodecError, expand, squeeze

BLOCK = 1 << 15
ESCAPE = 255  # the symbol of a number that is written in full

Shape = tuple[int, int]


class Offsets:
    """What rows and columns of a matrix foretell together: the sum of a row's and a column's int16 number."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray) -> None:
        self.rows, self.columns = rows, columns

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
        """As a section, all low bytes first."""
        return squeeze(np.concatenate([self.rows, self.columns]).view(np.uint8).reshape(-1, 2).T)

    @classmethod
    def expanded(cls, section: memoryview, shape: Shape) -> Offsets:
        """Read from a section."""
        halves = expand(section, 2 * sum(shape), np.uint8).reshape(2, -1)
        both = np.ascontiguousarray(halves.T).reshape(-1).view(np.int16)
        return cls(both[: shape[0]], both[shape[0] :])


def to_symbols(numbers: np.ndarray, out: np.ndarray) -> None:
    """Write integers as symbols: bytes, ESCAPE for what is not in 0 to 254."""
    np.copyto(out, np.minimum(numbers.view(f"u{numbers.itemsize}"), ESCAPE), casting="unsafe")


def escaped(words: np.ndarray, symbols: np.ndarray) -> bytes:
    """The words with the symbol ESCAPE."""
    return words[symbols == ESCAPE].tobytes()


def put_escaped(words: np.ndarray, symbols: np.ndarray, section: memoryview) -> None:
    """Write the words with the symbol ESCAPE where they belong."""
    where = np.flatnonzero(symbols == ESCAPE)
    if len(section) != where.size * words.itemsize:
        raise CodecError(f"damaged payload: {len(section)} bytes of numbers in full, for {where.size} of them")
    words[where] = np.frombuffer(section, words.dtype)
