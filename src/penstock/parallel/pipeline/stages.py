"""Which layers each stage of a pipeline has, and where stages live; and a decoder reduced to what one rank of it holds.

A rank holds one decoder with the blocks of all its stages, under their own numbers, so names of parameters are the same in every layout. Where
the first and the last stage live on one rank (a wave of two chunks, or four) a tied embedding exists once; else both ranks have it, and its
gradient is summed over the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from penstock.models import Decoder


@dataclass(frozen=True)
class Part:
    """What one stage holds: consecutive layers, and the embedding or the head (final norm, head, loss) if it is an end."""

    layers: range
    embedding: bool = False
    head: bool = False


@dataclass(frozen=True)
class Stages:
    """The model's parts in the order of data flow, and the pipeline rank of each."""

    parts: tuple[Part, ...]
    rank_of: tuple[int, ...]
    tied: bool = False

    def holders(self, name: str) -> tuple[int, ...]:
        """Pipeline ranks that hold the parameter or buffer of this name, ascending."""
        found = {rank for part, rank in zip(self.parts, self.rank_of) if self.uses(part, name)}
        assert found, f"no stage has {name}"
        return tuple(sorted(found))

    def uses(self, part: Part, name: str) -> bool:
        """Whether a part computes with the parameter or buffer of this name."""
        words = name.split(".")
        if words[0] == "blocks":
            return int(words[1]) in part.layers
        return (part.embedding or (part.head and self.tied)) if words[0] == "embedding" else part.head


def keep_stages(decoder: Decoder, stages: Stages, rank: int) -> None:
    """Drop from `decoder` whatever pipeline rank `rank` does not hold, in place."""
    for name in list(decoder.blocks):
        if rank not in stages.holders(f"blocks.{name}"):
            del decoder.blocks[name]
    for name in ("embedding", "norm", "head"):
        if rank not in stages.holders(name):
            setattr(decoder, name, None if name == "head" else nn.Identity())
