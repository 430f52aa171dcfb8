"""Numbers that have not moved, taken out before anything else: rows that are the base's bit for bit, and single numbers where there are many.

Without a base, zeros count as such. Which ones they are is a bit for each, squeezed: 0.4 bits a number where one in twenty moves at random, next to
nothing where they come in stretches, and nothing at all where hardly any is still. What is left of a matrix is a matrix of fewer rows, or a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np

from penstock.store.codec.blocks import Shape
from penstock.store.codec.sections import CodecError, expand, squeeze

FEW = 1 / 16  # share of still numbers below which their marks cost more than they save


class Marks(IntFlag):
    """What is marked."""

    NONE = 0
    ROWS = 1
    NUMBERS = 2


@dataclass(frozen=True)
class Moved:
    """Which numbers of a matrix have moved (None: all), and the shape of the matrix that they make."""

    where: np.ndarray | None
    shape: Shape

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """What is left of a flat matrix."""
        return numbers if self.where is None else numbers[self.where]

    def back(self, numbers: np.ndarray, base: np.ndarray) -> np.ndarray:
        """The whole matrix of what is left and the base."""
        if self.where is None:
            return numbers
        whole = base.copy()
        whole[self.where] = numbers
        return whole


def find(x: np.ndarray, base: np.ndarray, shape: Shape) -> tuple[Marks, list[bytes], Moved]:
    """What to mark, the sections of the marks, and what has moved."""
    still = x == base
    n_still = int(np.count_nonzero(still))
    if n_still <= FEW * x.size:
        return Marks.NONE, [b"", b""], Moved(None, shape)
    marks, sections, moved = Marks.NONE, [b"", b""], ~still
    rows = moved.reshape(shape).any(1)
    n_rows = int(np.count_nonzero(rows))
    inside = n_still - (shape[0] - n_rows) * shape[1]
    if n_rows < shape[0]:
        marks, sections[0] = Marks.ROWS, squeeze(np.packbits(rows))
    if inside > FEW * n_rows * shape[1]:
        marks, sections[1] = marks | Marks.NUMBERS, squeeze(np.packbits(moved.reshape(shape)[rows]))
        return marks, sections, Moved(np.flatnonzero(moved), (1, x.size - n_still))
    return marks, sections, _moved(rows, None, shape)


def read(marks: int, sections: list[memoryview], shape: Shape) -> Moved:
    """What has moved; raises CodecError."""
    if marks & ~(Marks.ROWS | Marks.NUMBERS):
        raise CodecError(f"damaged payload: marks of kind {marks}")
    rows = _bits(sections[0], shape[0]) if marks & Marks.ROWS else None
    n_rows = shape[0] if rows is None else int(np.count_nonzero(rows))
    numbers = _bits(sections[1], n_rows * shape[1]) if marks & Marks.NUMBERS else None
    return _moved(rows, numbers, shape)


def _moved(rows: np.ndarray | None, numbers: np.ndarray | None, shape: Shape) -> Moved:
    if rows is None and numbers is None:
        return Moved(None, shape)
    of_rows = np.arange(shape[0] * shape[1])
    if rows is not None:
        of_rows = of_rows.reshape(shape)[rows].reshape(-1)
    if numbers is None:
        return Moved(of_rows, (of_rows.size // shape[1], shape[1]))
    where = of_rows[numbers]
    return Moved(where, (1, where.size))


def _bits(section: memoryview, count: int) -> np.ndarray:
    return np.unpackbits(expand(section, -(-count // 8), np.uint8), count=count).view(bool)
