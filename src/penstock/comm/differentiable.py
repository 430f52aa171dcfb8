"""Collectives that autograd goes through, in conjugate pairs.

    gather        all-gather along a dim          backward: reduce-scatter
    scatter_sum   reduce-scatter along a dim      backward: all-gather
    total         all-reduce                      backward: all-reduce
    exchange      all-to-all                      backward: all-to-all, the other way

The convention is Megatron's (Shoeybi et al., arXiv 1909.08053, section 3; Korthikanti et al., arXiv 2205.05198, section 4.2): the loss is
the *sum* of what the ranks hold, so a gradient that several ranks hold of one replicated value is partial, and wanted as the
sum over them. `total` therefore sums in both directions: each rank adds its share, and each uses the result for its own share of what follows.

They are opaque to the compiler: a compiled block breaks its graph at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from penstock.comm.axis import Axis
from penstock.comm.opaque import opaque


@opaque
def gather(x: Tensor, axis: Axis, dim: int, purpose: str) -> Tensor:
    """Join the ranks' parts along `dim`."""
    return x if axis.size == 1 else _Gather.apply(x, axis, dim, purpose)


@opaque
def scatter_sum(x: Tensor, axis: Axis, dim: int, purpose: str) -> Tensor:
    """Sum over the axis, and keep this rank's part along `dim`, which must divide evenly."""
    return x if axis.size == 1 else _ScatterSum.apply(x, axis, dim, purpose)


@opaque
def total(x: Tensor, axis: Axis, purpose: str) -> Tensor:
    """Sum over the axis, for every rank to use in its own share of the work."""
    return x if axis.size == 1 else _Total.apply(x, axis, purpose)


@opaque
def exchange(rows: Tensor, axis: Axis, send: Sequence[int], receive: Sequence[int], purpose: str) -> Tensor:
    """Send `send[r]` consecutive rows to each rank r; return the `receive[r]` rows from each, in rank order."""
    return rows if axis.size == 1 else _Exchange.apply(rows, axis, tuple(send), tuple(receive), purpose)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, purpose: str) -> Tensor:
        ctx.call = (axis, dim, purpose)
        return axis.all_gather(x, dim, purpose)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        axis, dim, purpose = ctx.call
        return axis.reduce_scatter(grad, dim, purpose), None, None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, purpose: str) -> Tensor:
        ctx.call = (axis, dim, purpose)
        return axis.reduce_scatter(x, dim, purpose)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        axis, dim, purpose = ctx.call
        return axis.all_gather(grad, dim, purpose), None, None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, purpose: str) -> Tensor:
        ctx.call = (axis, purpose)
        return axis.all_reduce(x.clone(memory_format=torch.contiguous_format), purpose)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        axis, purpose = ctx.call
        return axis.all_reduce(grad.clone(memory_format=torch.contiguous_format), purpose), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, axis: Axis, send: tuple[int, ...], receive: tuple[int, ...], purpose: str) -> Tensor:
        ctx.call = (axis, send, receive, purpose)
        return axis.all_to_all(rows, send, receive, purpose)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        axis, send, receive, purpose = ctx.call
        return axis.all_to_all(grad, receive, send, purpose), None, None, None, None
