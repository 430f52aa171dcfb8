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
    """A stage's piece of the model: layers `first` up to, not including, `last`; whether it embeds tokens; whether it ends in norm, head and loss."""

    first: int
    last: int
    embedding: bool = False
    head: bool = False

    @property
    def layers(self) -> range:
        """Numbers of the stage's layers."""
        return range(self.first, self.last)


@dataclass(frozen=True)
class Stages:
    """The model's parts in the order of data flow, and the pipeline rank of each."""

    parts: tuple[Part, ...]
    rank_of: tuple[int, ...]
    tied: bool = False

    def holders(self, name: str) -> tuple[int, ...]:
        """Pipeline ranks that hold the parameter or buffer of this name, ascending."""
        words = name.split(".")
        if words[0] == "blocks":
            found = {rank for part, rank in zip(self.parts, self.rank_of) if int(words[1]) in part.layers}
        else:
            embeds, ends = self.rank_of[0], self.rank_of[-1]
            found = {embeds} | ({ends} if self.tied else set()) if words[0] == "embedding" else {ends}
        assert found, f"no stage has {name}"
        return tuple(sorted(found))


def keep_stages(decoder: Decoder, stages: Stages, rank: int) -> None:
    """Drop from `decoder` whatever pipeline rank `rank` does not hold, in place."""
    for name in list(decoder.blocks):
        if rank not in stages.holders(f"blocks.{name}"):
            del decoder.blocks[name]
    for name in ("embedding", "norm", "head"):
        if rank not in stages.holders(name):
            setattr(decoder, name, None if name == "head" else nn.Identity())
