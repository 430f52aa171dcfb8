"""Faults to plant: the ways in which parallel training goes wrong without a word, each as a switch for the time of a check.

A matrix that finds no fault proves nothing until it is seen to find one. Each entry of `FAULTS` is a context manager that every rank enters;
within it one thing is wrong that a hasty change could make wrong. All were met in public trackers of large frameworks, or are their kin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from penstock.comm import Axis, World, differentiable
from penstock.engine import Core
from penstock.optim import Optimizer
from penstock.parallel import Layout, Placement, context, shard
from penstock.parallel.experts import expert
from penstock.parallel.pipeline.stage import DecoderStage

Fault = Callable[[World], Any]


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _missing_reduction(world: World) -> Any:
    """The partial sums of a layer's output are cut without being added."""

    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, purpose: str) -> Tensor:
        ctx.call = (axis, dim, purpose)
        return x.chunk(axis.size, dim)[axis.index].contiguous()

    return _replaced(differentiable._ScatterSum, "forward", staticmethod(forward))


def _gradient_of_a_gather_not_summed(world: World) -> Any:
    """The gradient of gathered values is cut without being added."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        axis, dim, _ = ctx.call
        return grad.chunk(axis.size, dim)[axis.index].contiguous(), None, None, None

    return _replaced(differentiable._Gather, "backward", staticmethod(backward))


def _wrong_divisor(world: World) -> Any:
    """Each rank takes the mean over its own tokens instead of the global batch's."""
    kept: Any = Core.__dict__["nominal_weight"]
    return _replaced(Core, "nominal_weight", property(lambda core: kept.fget(core) * core.layout.size(*core.layout.token_axes)))


def _mean_of_means(world: World) -> Any:
    """Each rank takes the mean over its own share of the batch, as if all shares were even."""
    kept: Any = Core.__dict__["nominal_weight"]

    def weight(core: Core) -> float:
        balancer = core.balancer
        return kept.fget(core) * balancer.even[0] / core.shares[balancer.replica_of[world.rank]]

    return _replaced(Core, "nominal_weight", property(weight))


def _replicas_of_one_axis_forgotten(world: World) -> Any:
    """Gradients of replicated weights are summed over the data axes only."""
    kept = Placement.replicas
    return _replaced(Placement, "replicas", lambda self, layout: tuple(a for a in kept(self, layout) if a not in ("row", "column")))


def _norm_counted_twice(world: World) -> Any:
    """Every replica counts its gradient in the global norm."""
    return _replaced(Placement, "owned", lambda self, layout, rank, turn=0, alone=(): [True] * len(self.boxes(layout, rank)))


def _replica_not_updated(world: World) -> Any:
    """One rank keeps its old norms."""
    kept = Optimizer.step

    def step(self: Optimizer) -> None:
        held = {p: p.detach().clone() for p, name in self._names.items() if p.ndim == 1 and world.rank == world.size - 1}
        kept(self)
        with torch.no_grad():
            for parameter, value in held.items():
                parameter.copy_(value)

    return _replaced(Optimizer, "step", step)


def _balancing_bias_of_own_load(world: World) -> Any:
    """Each rank balances its experts by its own tokens."""
    return _replaced(Core, "_sum_loads", lambda self, load_le: None)


def _positions_begin_anew(world: World) -> Any:
    """Every context rank numbers its tokens from zero."""
    return _replaced(context, "context_positions", _in_order(context.context_positions))


def _in_order(kept: Any) -> Any:
    return lambda tokens, ranks, index: kept(tokens, ranks, index) - kept(tokens, ranks, index).min()


def _softmax_of_own_vocabulary(world: World) -> Any:
    """The sum of exponentials is not added over the vocabulary's ranks."""
    kept = Axis.all_reduce

    def all_reduce(self: Axis, tensor: Tensor, purpose: str, maximum: bool = False) -> Tensor:
        return tensor if purpose == "loss" and not maximum else kept(self, tensor, purpose, maximum)

    return _replaced(Axis, "all_reduce", all_reduce)


def _tokens_come_back_in_another_order(world: World) -> Any:
    """Rows come back from their experts in the order they were sent in, not the caller's."""
    return _replaced(expert, "combine", lambda y_md, order: y_md)


def _shards_averaged(world: World) -> Any:
    """The shard axis averages gradients, as frameworks that weight by local means do."""
    kept = shard._CountedReduceScatter.__call__

    def call(self: Any, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        work = kept(self, output_tensor, input_tensor, group, op, async_op)
        output_tensor.div_(group.size())
        return work

    return _replaced(shard._CountedReduceScatter, "__call__", call)


def _ranks_read_the_same_data(world: World) -> Any:
    """Every data-parallel rank reads the first rank's sequences."""
    kept = Core.sequences_of
    return _replaced(Core, "sequences_of", lambda self, sample_ids, rank: kept(self, sample_ids, 0))


def _documents_of_own_part(world: World) -> Any:
    """Context ranks take their own documents for everybody's."""
    kept = Axis.all_gather

    def all_gather(self: Axis, tensor: Tensor, dim: int, purpose: str) -> Tensor:
        return torch.cat([tensor] * self.size, dim) if purpose == "documents" else kept(self, tensor, dim, purpose)

    return _replaced(Axis, "all_gather", all_gather)


def _gradients_left_and_forgotten(world: World) -> Any:
    """A pipeline's first micro-batch leaves its weights' gradients for later, and nobody computes them."""
    kept = DecoderStage.weights

    def weights(self: DecoderStage, micro: int) -> None:
        if micro == 0:
            self._left[micro].clear()
        kept(self, micro)

    return _replaced(DecoderStage, "weights", weights)


def _tied_ends_apart(world: World) -> Any:
    """The first and the last stage each update their own copy of a tied embedding, by their own gradient."""
    kept = Placement.replica_ranks

    def replica_ranks(self: Placement, layout: Layout, rank: int) -> tuple[int, ...]:
        here = layout.coordinate(rank, "pipeline")
        return tuple(r for r in kept(self, layout, rank) if layout.coordinate(r, "pipeline") == here)

    return _replaced(Placement, "replica_ranks", replica_ranks)


#: Each fault by what is wrong.
FAULTS: dict[str, Fault] = {
    "a missing reduction": _missing_reduction,
    "the gradient of a gather not summed": _gradient_of_a_gather_not_summed,
    "a wrong divisor": _wrong_divisor,
    "a mean of means over uneven shares": _mean_of_means,
    "replicas of one axis forgotten": _replicas_of_one_axis_forgotten,
    "a norm counted twice": _norm_counted_twice,
    "a replicated weight updated on some ranks only": _replica_not_updated,
    "an unsynchronised balancing bias": _balancing_bias_of_own_load,
    "positions that begin anew on every rank": _positions_begin_anew,
    "a softmax over the own vocabulary only": _softmax_of_own_vocabulary,
    "tokens in another order after their experts": _tokens_come_back_in_another_order,
    "gradients averaged over the shard axis": _shards_averaged,
    "ranks that read the same data": _ranks_read_the_same_data,
    "documents of the own part only": _documents_of_own_part,
    "gradients left for later and forgotten": _gradients_left_and_forgotten,
    "the two ends of a tied embedding apart": _tied_ends_apart,
}
