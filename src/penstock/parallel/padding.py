"""Filling a clipped part up to the full part's shape, so that every rank computes and sends the same shapes.

Parts of a dim that does not divide are shorter at the end (`placement.part`); a matrix padded with zeros there computes zeros, and autograd
cuts the padding's gradient off again. Cost: a copy of the parts that are short, nothing for the others.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_to(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`tensor` with zeros behind its last dims until these have `shape`; itself where they have it."""
    missing = [wanted - there for wanted, there in zip(reversed(shape), reversed(tensor.shape))]
    return F.pad(tensor, [n for amount in missing for n in (0, amount)]) if any(missing) else tensor
