"""Top-k exchange with error feedback: each node sends the largest entries of its gradient, and keeps the rest for later.

    a = g + r;   s = decode(encode(top-k of a));   r ← a - s;   the sum over nodes is the sum of every node's s

so that what was sent and what is withheld add up to all gradients so far, to rounding (`residual.py`; Lin et al., Deep Gradient Compression, arXiv
1712.01887); with `momentum`, to all their velocities. Entries are chosen for each tensor by itself: k = ⌈density · n⌉ of this rank's rows, or nearly
so many of large ones (`codec/select.py`). During the first `warmup` steps the density falls from 1 to its value geometrically (Lin et al., section
3.2). Tensors of one dim (norms), and those whose residual no layout could cut anew (tied over a pipeline, or placed by hand), are few and travel
whole.

All ranks decode the same messages in the same order, so replicas stay equal to the bit. A damaged message is noticed by whoever decodes it
(`codec`), and nothing of the step counts until `commit`: the engine asks all ranks first, and without it the residuals are as they were.

Cost: two numbers a parameter this rank exchanges (residual, and what becomes of it), one pass to choose, one to write. When not to use it:
where the network is not the bottleneck; and it changes what is learned, see docs/exchange.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from penstock.comm.codec import MessageError, NonFiniteError, ValuesFormat, decode, encode
from penstock.comm.gradients.bucket import Bucket
from penstock.comm.gradients.residual import Residual


@dataclass
class TopK:
    """`Between` by the largest entries of parameters that are `cuttable`, of two dims or more."""

    density: float
    values: ValuesFormat
    warmup: int
    cuttable: Callable[[nn.Parameter], bool]
    #: Sorted indices of a tensor's largest entries, for a density.
    select: Callable[[Tensor, float], Tensor]
    #: Whether what is left out is added to the next; else whoever calls sees to it (`left`).
    feedback: bool = True
    #: Decay of the velocity that gradients are summed into; 0: none is kept.
    momentum: float = 0.0
    faults: list[str] = field(default_factory=list)
    overflow: bool = False
    withholds: bool = True
    #: Every parameter's velocity, with a leading dim of one for the node.
    velocities: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    _residuals: dict[int, Residual] = field(default_factory=dict)
    _density: float = 1.0

    def __str__(self) -> str:
        what = f"the largest {100 * self.density:.3g}%" if self.density < 1.0 else "all entries"
        return f"{what} in {self.values}"

    def prepare(self, buckets: list[Bucket]) -> dict[nn.Parameter, Tensor]:
        """Make the residuals of the buckets, all zero; each parameter's, with a leading dim of one for the node."""
        self._residuals = {id(bucket): Residual(bucket, self._compressed, self.feedback, self.momentum) for bucket in buckets}
        self.velocities = {parameter: tensor for residual in self._residuals.values() for parameter, tensor in residual.velocity.items()}
        return {parameter: tensor for residual in self._residuals.values() for parameter, tensor in residual.withheld.items()}

    def compresses(self, shape: tuple[int, ...]) -> bool:
        """Matrices, and stacks of them."""
        return len(shape) > 1

    def begin(self, step: int, everything: bool = False) -> None:
        """Step number `step` comes, in which perhaps everything is sent."""
        warm = min(1.0, step / self.warmup) if self.warmup else 1.0
        self._density = 1.0 if everything else self.density**warm
        self.faults, self.overflow = [], False

    def sum_(self, bucket: Bucket) -> None:
        """Replace `bucket.own` by the sum of what the nodes send."""
        residual, between = self._residuals[id(bucket)], bucket.route.between
        residual.add(bucket.own)
        whole = residual.whole_numbers()
        if whole.numel():
            between.all_reduce(whole, "gradients")
        message = self._write(residual)
        bucket.own.zero_()
        for node, sent in enumerate(between.gather_messages(message, "gradients")):
            self._add(bucket, residual, sent, node)
        residual.put_whole(whole, bucket.own)

    def left(self, bucket: Bucket) -> Tensor:
        """What this node's last message left out of the bucket."""
        return self._residuals[id(bucket)].becomes

    def commit(self) -> None:
        """The step counts: what was not sent is what is withheld."""
        for residual in self._residuals.values():
            residual.commit()

    def _compressed(self, parameter: nn.Parameter) -> bool:
        return self.compresses(tuple(parameter.shape)) and self.cuttable(parameter)

    def _write(self, residual: Residual) -> Tensor:
        single = residual.becomes.to(torch.float32)
        try:
            chosen = [self.select(single[place], self._density).add_(place.start) for _, place in residual.chosen]
            indices = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=single.device)
            everything = not residual.whole and indices.numel() == single.numel()
            return encode(single, None if everything else indices, self.values)
        except NonFiniteError:
            self.overflow = True
            return encode(torch.zeros_like(single), torch.zeros(0, dtype=torch.int64, device=single.device), self.values)

    def _add(self, bucket: Bucket, residual: Residual, message: Tensor, node: int) -> None:
        """Add what a node sent; of this rank's own message, take it from what is withheld."""
        try:
            sent = decode(message)
            if sent.n != bucket.own.numel():
                raise MessageError(f"a message of {sent.n} entries for a bucket of {bucket.own.numel()}")
        except MessageError as error:
            self.faults.append(f"the gradients of node {node}: {error}")
            return
        values = sent.values.to(bucket.own.dtype)
        if sent.indices is None:
            bucket.own += values
        else:
            bucket.own.index_add_(0, sent.indices, values)
        if node == bucket.route.between.index:
            residual.sent(sent.indices, values)
