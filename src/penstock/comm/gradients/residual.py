"""What a compressed exchange withholds of a bucket: error feedback's books.

    a = g + r;   s = what the node sends of a;   r ← a - s      (Seide et al., 2014; Stich et al., arXiv 1809.07599)

so that what was sent and what is withheld add up to all gradients so far, to rounding. Until `commit` the old r stays as it was.

With momentum correction (Lin et al., arXiv 1712.01887, sections 3.1 and 3.2) gradients are first summed into a velocity, u ← m u + g, and a = u +
r; where an entry was sent u begins anew from 0, so that what waited long does not push on.

Only parameters whose residual any layout can cut anew are chosen to be compressed; the others, and norms, are few and travel whole. Cost: two
numbers for each the rank exchanges, four with momentum. Not needed where what is left out stays elsewhere (`periodic.py` keeps it in the weights).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from penstock.comm.gradients.bucket import Bucket, Piece


class Residual:
    """A bucket's residual, what it becomes, and where in the bucket chosen pieces and whole ones lie; empty pieces lie nowhere."""

    def __init__(self, bucket: Bucket, chosen: Callable[[nn.Parameter], bool], feedback: bool = True, momentum: float = 0.0) -> None:
        self._kept = torch.zeros_like(bucket.own) if feedback else None
        self._momentum = momentum
        self._velocity, self._next = (torch.zeros_like(bucket.own) if momentum else None for _ in range(2))
        self.becomes = torch.zeros_like(bucket.own)
        self.chosen: list[tuple[Piece, slice]] = []
        self.whole: list[slice] = []
        #: The residual of every chosen parameter, with a leading dim of one for the node.
        self.withheld: dict[nn.Parameter, Tensor] = {}
        #: Its velocity likewise, with momentum.
        self.velocity: dict[nn.Parameter, Tensor] = {}
        for piece in bucket.pieces:
            start = piece.view.storage_offset() - bucket.own.storage_offset()
            place, compressed = slice(start, start + piece.view.numel()), chosen(piece.parameter)
            if compressed and self._kept is not None:
                self.withheld[piece.parameter] = self._kept[place].view(1, *piece.view.shape)
            if compressed and self._velocity is not None:
                self.velocity[piece.parameter] = self._velocity[place].view(1, *piece.view.shape)
            if piece.view.numel() and compressed:
                self.chosen.append((piece, place))
            elif piece.view.numel():
                self.whole.append(place)

    def add(self, own: Tensor) -> None:
        """Begin with the gradient and what was withheld before."""
        self.becomes.copy_(own)
        if self._velocity is not None and self._next is not None:
            torch.add(own, self._velocity, alpha=self._momentum, out=self._next)
            self.becomes.copy_(self._next)  # what travels whole has no velocity
        if self._kept is not None:
            self.becomes += self._kept

    def sent(self, indices: Tensor | None, values: Tensor) -> None:
        """Take what this rank's message carried, at these entries or at all, from what is withheld."""
        if indices is None:
            self.becomes -= values
        else:
            self.becomes.index_add_(0, indices, values, alpha=-1)
        if self._next is not None:
            self._next[slice(None) if indices is None else indices] = 0

    def whole_numbers(self) -> Tensor:
        """All that travels whole, one piece behind the other; a copy."""
        return torch.cat([self.becomes[place] for place in self.whole]) if self.whole else self.becomes[:0]

    def put_whole(self, summed: Tensor, own: Tensor) -> None:
        """Put the sum of `whole_numbers` into the bucket's `own`; of such pieces nothing is left."""
        for place, part in zip(self.whole, summed.split([place.stop - place.start for place in self.whole])):
            own[place] = part
            self.becomes[place] = 0
            if self._next is not None:
                self._next[place] = 0

    def commit(self) -> None:
        """The step counts: what was not sent is what is withheld."""
        if self._kept is not None:
            self._kept.copy_(self.becomes)
        if self._velocity is not None and self._next is not None:
            self._velocity.copy_(self._next)
