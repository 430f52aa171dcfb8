"""How far the tensors of two snapshots are apart, and where they part.

Only tensors whose digests differ are read, cell by cell. Bits are compared, so that a zero with another sign, or another NaN, counts as a
difference too; norms are in float64. Cost: reading the tensors that differ, twice. Memory: two cells.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from penstock.store.cells.contents import Contents


@dataclass(frozen=True)
class Difference:
    """Two versions of a tensor: ‖after − before‖ / ‖before‖, the largest |after − before|, how many numbers differ, and the first of them."""

    name: str
    relative: float
    largest: float
    count: int
    numel: int
    #: Index of the first number that differs, in C order, and its two values.
    place: tuple[int, ...]
    before: float
    after: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; what is not finite as text."""
        return {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in asdict(self).items()}


def difference(before: Contents, after: Contents, name: str) -> Difference:
    """How far a tensor that both have in one shape and dtype, and whose digests differ, is apart."""
    old, new = (contents.manifest.tensors[name].cells for contents in (before, after))
    square = norm = largest = 0.0
    count, first = 0, None
    for index, digests in enumerate(zip(old, new)):
        box, a = before.cell(name, index)
        norm += float(a.double().square().sum())
        if digests[0] == digests[1]:
            continue
        b = after.cell(name, index)[1]
        gap = (b.double() - a.double()).abs()
        square, most = square + float(gap.square().sum()), float(gap.max())
        largest = largest if most <= largest else most  # not a number is the most
        differs = _bits_differ(a, b)
        count += int(differs.sum())
        place = torch.unravel_index(differs.view(-1).int().argmax(), a.shape)
        where = tuple(int(i) + start for i, start in zip(place, box.offsets))
        if first is None or where < first[0]:
            first = where, float(a[place]), float(b[place])
    assert first is not None, f"the digests of {name} differ, and its content does not"
    relative = math.sqrt(square / norm) if norm else math.inf
    return Difference(name, relative, largest, count, math.prod(before.manifest.tensors[name].shape), *first)


def _bits_differ(a: Tensor, b: Tensor) -> Tensor:
    """Which numbers of two tensors differ in any bit."""
    bits = [t.contiguous().view(-1).view(torch.uint8).view(-1, t.element_size()) for t in (a, b)]
    return (bits[0] != bits[1]).any(1).view(a.shape)
