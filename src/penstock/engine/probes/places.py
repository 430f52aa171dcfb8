"""Where a parameter is, by the names of metrics: its own place, and the larger ones that it is a part of.

    blocks.3.attention.wq.weight       layer.03.attention.wq      in layer.03.attention, layer.03, total
    blocks.3.ffn_norm.weight           layer.03.ffn.norm          in layer.03.ffn, layer.03, total
    blocks.3.ffn.experts.gate_efd      layer.03.ffn.experts.gate  in layer.03.ffn, layer.03, total
    embedding.weight                   embedding                  in total
    norm.weight                        norm                       in total

The norm of a larger place is the root of the sum of squares of its parts, which a rank takes over what it counts (`Sums`); the merge of ranks does
the same over them. Cost: one small matrix product a step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")
_SHAPES = re.compile(r"_(?:efd|edf)$")


def layer(number: int | str) -> str:
    """The place of a layer."""
    return f"layer.{int(number):02d}"


def place_of(parameter: str) -> str:
    """The place of a parameter of that logical name."""
    found = _BLOCK.fullmatch(parameter.removesuffix(".weight"))
    if found is None:
        return parameter.removesuffix(".weight")
    number, inner = found.groups()
    if inner.endswith("_norm") and "." not in inner:
        inner = f"{inner.removesuffix('_norm')}.norm"
    return f"{layer(number)}.{_SHAPES.sub('', inner)}"


def around(place: str) -> list[str]:
    """The larger places that a place is a part of."""
    words = place.split(".")
    if words[0] != "layer":
        return ["total"]
    return [".".join(words[:3]), ".".join(words[:2]), "total"]


class Sums:
    """Turns norms of single parts into those of their places and of all larger ones."""

    def __init__(self, parameters: Sequence[str]) -> None:
        """`parameters`: of each part, the parameter that it is of."""
        own = [place_of(name) for name in parameters]
        #: The places, smallest first.
        self.places = list(dict.fromkeys(own))
        for place in list(self.places):
            self.places += [larger for larger in around(place) if larger not in self.places]
        row = {place: i for i, place in enumerate(self.places)}
        self._named: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._member = np.zeros((len(self.places), len(own)))
        for column, place in enumerate(own):
            for within in (place, *around(place)):
                self._member[row[within], column] = 1.0

    def named(self, *quantities: str) -> tuple[str, ...]:
        """The metrics of these quantities at all places; the same tuple each time."""
        if quantities not in self._named:
            self._named[quantities] = tuple(f"{quantity}/{place}" for quantity in quantities for place in self.places)
        return self._named[quantities]

    def norms(self, of_parts: np.ndarray) -> np.ndarray:
        """The norm of each place from those of the parts; one that is not finite spoils its own places alone."""
        with np.errstate(invalid="ignore", over="ignore"):
            squares = of_parts * of_parts
        bad = ~np.isfinite(squares)
        if not bad.any():
            return np.sqrt(self._member @ squares)
        sums = self._member @ np.where(bad, 0.0, squares)
        for column in np.flatnonzero(bad):
            sums[self._member[:, column] > 0] += squares[column]
        return np.sqrt(sums)
