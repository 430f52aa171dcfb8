"""Floats as integers: a float's bits without the sign, read as an integer, are its place among the floats of one sign in order of magnitude.

That place is a logarithm in pieces of straight line: 2^mantissa places an octave. So a ratio of floats is nearly a difference of places, and
places can be subtracted, shifted and put back exactly where floats would round. Numbers of 16 bits are treated as int32, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SINGLE_MANTISSA, SINGLE_BIAS = 23, 127


@dataclass(frozen=True)
class Format:
    """A float format: bits in all, bits of the mantissa, bias of the exponent."""

    bits: int
    mantissa: int
    bias: int

    @property
    def word(self) -> np.dtype:
        """The signed integer of its size."""
        return np.dtype(f"<i{self.bits // 8}")

    @property
    def infinity(self) -> int:
        """The word of infinity; NaNs are above."""
        return ((1 << (self.bits - 1 - self.mantissa)) - 1) << self.mantissa

    @property
    def magnitudes(self) -> int:
        """The mask of all bits but the sign."""
        return (1 << (self.bits - 1)) - 1


#: What is treated as floats; other dtypes (float64 among them, which only serves to compare layouts) are stored as byte planes.
FORMATS = {torch.float32: Format(32, 23, 127), torch.bfloat16: Format(16, 7, 127), torch.float16: Format(16, 10, 15)}


def to_words(cell: Tensor) -> np.ndarray:
    """A flat contiguous CPU tensor of a float format as signed integers, without copying."""
    return cell.view(torch.int32 if cell.element_size() == 4 else torch.int16).numpy()


def from_words(words: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The flat tensor whose integers they are."""
    return torch.from_numpy(words).view(dtype)


def to_single(words: np.ndarray, form: Format) -> np.ndarray:
    """float32 values of words, exactly; of float32 words without copying."""
    if form.bits == 32:
        return words.view(np.float32)
    if form.bias == SINGLE_BIAS:
        return (words.astype(np.int32) << 16).view(np.float32)
    return words.view(np.float16).astype(np.float32)


def from_single(values: np.ndarray, form: Format) -> np.ndarray:
    """Words of float32 values, rounded to nearest even."""
    if form.bits == 32:
        return values.view(np.int32)
    return to_words(torch.from_numpy(values).to(torch.bfloat16 if form.bias == SINGLE_BIAS else torch.float16))
