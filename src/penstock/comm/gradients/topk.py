"""Top-k exchange with error feedback: each node sends the largest entries of its gradient, and keeps the rest for later.

    a = g + r;   s = decode(encode(top-k of a));   r ← a - s;   the sum over nodes is the sum of every node's s

so that what was sent and what is withheld add up to all gradients so far, to rounding (Seide et al., 2014; Stich et al., arXiv 1809.07599; Lin
et al., Deep Gradient Compression, arXiv 1712.01887). Entries are chosen for each tensor by itself: k = ⌈density · n⌉ of this rank's rows. During
the first `warmup` steps the density falls from 1 to its value geometrically (Lin et al., section 3.2). Tensors of one dim (norms), and those
whose residual no layout could cut anew (tied over a pipeline, or placed by hand), are few and travel whole.

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

from penstock.comm.axis import Axis
from penstock.comm.codec import MessageError, NonFiniteError, ValuesFormat, decode, encode, select_exact, select_sampled
from penstock.comm.gradients.bucket import Bucket


@dataclass
class _State:
    """A bucket's residual, what it becomes, and where in the bucket whole tensors and chosen entries lie."""

    residual: Tensor | None
    becomes: Tensor
    sparse: list[slice]
    whole: list[slice]


@dataclass
class TopK:
    """`Between` by the largest entries of parameters that are `cuttable`, of two dims or more."""

    density: float
    values: ValuesFormat
    warmup: int
    cuttable: Callable[[nn.Parameter], bool]
    exact: bool = False
    #: Whether what is left out is added to the next; else whoever calls sees to it (`left`).
    feedback: bool = True
    faults: list[str] = field(default_factory=list)
    overflow: bool = False
    withholds: bool = True
    _states: dict[int, _State] = field(default_factory=dict)
    _density: float = 1.0

    def __str__(self) -> str:
        what = f"the largest {100 * self.density:.3g}%" if self.density < 1.0 else "all entries"
        return f"{what} in {self.values}"

    def prepare(self, buckets: list[Bucket]) -> dict[nn.Parameter, Tensor]:
        """Make the residuals of the buckets, all zero; each parameter's, with a leading dim of one for the node."""
        residuals = {}
        for bucket in buckets:
            state = _State(torch.zeros_like(bucket.own) if self.feedback else None, torch.zeros_like(bucket.own), [], [])
            for piece in bucket.pieces:
                start = piece.view.storage_offset() - bucket.own.storage_offset()
                place = slice(start, start + piece.view.numel())
                chosen = self.compresses(tuple(piece.parameter.shape)) and self.cuttable(piece.parameter)
                if piece.view.numel():
                    (state.sparse if chosen else state.whole).append(place)
                if chosen and state.residual is not None:
                    residuals[piece.parameter] = state.residual[place].view(1, *piece.view.shape)
            self._states[id(bucket)] = state
        return residuals

    def compresses(self, shape: tuple[int, ...]) -> bool:
        """Matrices, and stacks of them."""
        return len(shape) > 1

    def begin(self, step: int) -> None:
        """Step number `step` comes."""
        self._density = self.density ** min(1.0, step / self.warmup) if self.warmup else self.density
        self.faults, self.overflow = [], False

    def sum_(self, bucket: Bucket) -> None:
        """Replace `bucket.own` by the sum of what the nodes send."""
        state, between = self._states[id(bucket)], bucket.route.between
        state.becomes.copy_(bucket.own)
        if state.residual is not None:
            state.becomes += state.residual
        whole = _joined(bucket.own, state.whole)
        if whole is not None:
            between.all_reduce(whole, "gradients")
        message = self._write(state, between)
        bucket.own.zero_()
        for node, sent in enumerate(between.gather_messages(message, "gradients")):
            self._add(bucket, state, sent, node)
        if whole is not None:
            for place, part in zip(state.whole, whole.split([s.stop - s.start for s in state.whole])):
                bucket.own[place] = part
                state.becomes[place] = 0

    def left(self, bucket: Bucket) -> Tensor:
        """What this node's last message left out of the bucket."""
        return self._states[id(bucket)].becomes

    def commit(self) -> None:
        """The step counts: what was not sent is what is withheld."""
        for state in self._states.values():
            if state.residual is not None:
                state.residual.copy_(state.becomes)

    def _write(self, state: _State, between: Axis) -> Tensor:
        single = state.becomes if state.becomes.dtype == torch.float32 else state.becomes.float()
        select = select_exact if self.exact else select_sampled
        try:
            chosen = [select(single[place], self._density).add_(place.start) for place in state.sparse]
            indices = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=single.device)
            return encode(single, None if self._everything(state, indices) else indices, self.values)
        except NonFiniteError:
            self.overflow = True
            return encode(torch.zeros_like(single), torch.zeros(0, dtype=torch.int64, device=single.device), self.values)

    def _everything(self, state: _State, indices: Tensor) -> bool:
        return not state.whole and indices.numel() == state.becomes.numel()

    def _add(self, bucket: Bucket, state: _State, message: Tensor, node: int) -> None:
        """Add what a node sent; of this rank's own message, take it from what is withheld."""
        try:
            sent = decode(message)
            if sent.n != bucket.own.numel():
                raise MessageError(f"a message of {sent.n} entries for a bucket of {bucket.own.numel()}")
        except MessageError as error:
            self.faults.append(f"the gradients of node {node}: {error}")
            return
        values, at = sent.values.to(bucket.own.dtype), slice(None) if sent.indices is None else sent.indices
        bucket.own[at] += values
        if node == bucket.route.between.index:
            state.becomes[at] -= values


def _joined(flat: Tensor, places: list[slice]) -> Tensor | None:
    parts = [flat[place] for place in places]
    return torch.cat(parts) if sum(part.numel() for part in parts) else None
