"""Periodic exchange: nodes train apart, each on its own gradient, and every few steps bring their weights together.

    every step       g ← gradient of the node's own share of the batch;  w ← optimizer(w, g)              nothing crosses between nodes
    every H steps    d = r - w;   s = decode(encode(d));   r ← r - mean of the nodes' s;   w ← r - (d - s)

`r` is the reference, equal on all nodes: what they agree on, and what is evaluated, saved and exported as the model. What a message leaves out (d -
s) stays in the node's own weights, so it works on at once and is sent later: error feedback that delays only the others' view. With H = 1 and every
entry sent this is averaging after each step; local SGD is Stich, arXiv 1805.09767; the difference to a reference as the thing to send, DiLoCo's
(Douillard et al., arXiv 2311.08105), with its outer optimizer plain averaging here; its compression, SparseLoCo's (arXiv 2508.15706).

Moments stay each node's own. Cost: one more copy of the weights; bytes of one exchange every H steps. When not to use it: where every step must be
that of the whole batch, and with many nodes: each then sees little of the batch between two meetings.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from penstock.comm.axis import all_gather_into
from penstock.comm.gradients.bucket import Bucket, local
from penstock.comm.gradients.topk import TopK
from penstock.comm.meter import ByteMeter


class Periodic:
    """`Between` that leaves nodes apart, and the meeting that brings them together, by the messages of `codec`."""

    withholds = False

    def __init__(self, every: int, codec: TopK) -> None:
        self.every, self._codec = every, codec
        self.faults: list[str] = []
        self.overflow = False
        self._buckets: list[Bucket] = []
        self._squares: list[tuple[Tensor, Tensor]] = []  # of each bucket: of what was left out, and of all
        #: The weights that all nodes agree on, as far as this rank holds them.
        self.reference: dict[nn.Parameter, Tensor] = {}
        #: Seconds that the last meeting took, and how much of this rank's distances, by their squares, its messages left out.
        self.meeting_s, self.left_share = 0.0, 0.0

    @property
    def density(self) -> float:
        """Share of the entries that messages carry."""
        return self._codec.density

    @density.setter
    def density(self, density: float) -> None:
        self._codec.density = density

    def __str__(self) -> str:
        return f"none, but every {self.every} steps what weights have gone apart, {self._codec}"

    def compresses(self, shape: tuple[int, ...]) -> bool:
        """Gradients do not travel at all."""
        return False

    def prepare(self, buckets: list[Bucket]) -> dict[nn.Parameter, Tensor]:
        """All nodes begin with the same weights."""
        self._buckets = buckets
        self._codec.prepare(buckets)
        self.reference = {parameter: local(parameter).clone() for bucket in buckets for parameter in bucket.parameters}
        return {}

    def begin(self, step: int) -> None:
        """Every step is alike."""

    def sum_(self, bucket: Bucket) -> None:
        """Take the node's own gradient for all nodes'."""
        bucket.own.mul_(bucket.route.between.size)

    def commit(self) -> None:
        """There is nothing that a step may leave."""

    @torch.no_grad()
    def meet(self, step: int, agreed: Callable[[list[str], bool], bool], meter: ByteMeter, everything: bool) -> None:
        """Bring the nodes' weights together after `step`; `agreed(faults, overflow)` is whether all ranks got it all, else it is sent again.

        `everything`: every entry is sent, so that the reference is the nodes' mean, but for what the number format leaves out.
        """
        began = time.perf_counter()
        while True:
            self._codec.begin(step, everything)
            self._squares = []
            sums, rests = zip(*(self._exchange(bucket) for bucket in self._buckets))
            if agreed(self._codec.faults, self._codec.overflow):
                break
        for bucket, sum_, rest in zip(self._buckets, sums, rests):
            references, own = self._both(bucket)
            bucket.subtract(sum_, references, 1.0 / bucket.route.between.size)
            torch._foreach_copy_(own, references)
            bucket.subtract(rest, own)
        left, distance = (torch.stack(squares).sum().item() for squares in zip(*self._squares))
        self.left_share = left / distance if distance else 0.0
        self.meeting_s = time.perf_counter() - began
        for name in ("exchange.exposed", "exchange.span"):
            meter.add_seconds(name, self.meeting_s)

    def _exchange(self, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """The sum of what the nodes send of their distances from the reference, and what this node leaves out of its own, laid out as the bucket."""
        references, own = self._both(bucket)
        bucket.fill(references)
        bucket.take_away(own)
        inside = bucket.route.inside
        if bucket.own is not bucket.flat:
            bucket.own.copy_(bucket.flat.view(inside.size, -1)[inside.index])
        distance = bucket.own.dot(bucket.own)
        self._codec.sum_(bucket)
        left = self._codec.left(bucket)
        self._squares.append((left.dot(left), distance))
        if inside.size == 1:
            return bucket.own, left
        both = torch.stack([bucket.own, left])
        whole = both.new_empty(inside.size, *both.shape)
        with inside.counted("weights", "all_gather", whole):
            all_gather_into(whole.view(-1), both.view(-1), group=inside.group)
        return whole[:, 0].reshape(-1), whole[:, 1].reshape(-1)

    def _both(self, bucket: Bucket) -> tuple[list[Tensor], list[Tensor]]:
        """The reference and this node's weights of a bucket."""
        return [self.reference[parameter] for parameter in bucket.parameters], [local(parameter) for parameter in bucket.parameters]
