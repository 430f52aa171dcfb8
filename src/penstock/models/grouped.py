"""Matrix products of many experts at once, on rows sorted by expert, and the sorting itself.

On CUDA torch's grouped matmul does all experts in one kernel. Elsewhere, and where a width is not a multiple of 16 bytes, which that kernel
needs, a loop over the experts multiplies each one's contiguous rows into place. The loop is an opaque operator to the compiler, so a block
with experts compiles without a graph break although the rows of an expert are known only at run time.

The permutations have hand-written gradients that gather instead of scattering with atomics: faster, and the same bits in every run.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models.later import later


def grouped_linear(x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    """Rows of expert e, up to `ends_e[e]`, times its matrix: (n, d) and (e, o, d) to (n, o), in the format of `x_nd`."""
    if later.splitting:
        return (_CompiledSplitGrouped if torch.compiler.is_compiling() else _SplitGrouped).apply(x_nd, weight_eod, ends_e)
    return _grouped_linear(x_nd, weight_eod.to(x_nd.dtype), ends_e)


def grouped_input_gradient(grad_no: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    """Gradient of `grouped_linear` for the rows (n, d), from matrices (e, o, d) in the same format; for who writes a backward by hand."""
    if _in_one_kernel(grad_no, *weight_eod.shape[1:]):
        return F.grouped_mm(grad_no, weight_eod, offs=ends_e)
    return _segment_input_gradient(grad_no, weight_eod, ends_e)


def grouped_weight_gradient(grad_no: Tensor, x_nd: Tensor, ends_e: Tensor) -> Tensor:
    """Gradient of `grouped_linear` for the matrices, (e, o, d), in the format of the rows."""
    if _in_one_kernel(x_nd, x_nd.shape[1], grad_no.shape[1]):
        return F.grouped_mm(grad_no.t(), x_nd, offs=ends_e)
    return _segment_weight_gradient(grad_no, x_nd, ends_e)


def dispatch(x_nd: Tensor, order: Tensor, copies: int) -> Tensor:
    """Row r of the result is token `order[r] // copies`: each token's `copies` rows, sorted by expert."""
    return _Dispatch.apply(x_nd, order, copies)


def combine(y_md: Tensor, order: Tensor) -> Tensor:
    """Undo the sorting of `dispatch`: rows back in token order, a token's copies adjacent."""
    return _Combine.apply(y_md, order)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, order: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.copies = copies
        return x_nd[order // copies]

    @staticmethod
    def backward(ctx: Any, grad_md: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        grad_md = grad_md[_inverse(order)]
        return grad_md if ctx.copies == 1 else grad_md.unflatten(0, (-1, ctx.copies)).sum(1), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_md: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return y_md[_inverse(order)]

    @staticmethod
    def backward(ctx: Any, grad_md: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return grad_md[order], None


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


class _SplitGrouped(torch.autograd.Function):
    """`grouped_linear` whose matrices' gradients can be left for later."""

    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
        ctx.save_for_backward(x_nd, ends_e)
        ctx.weight = weight_eod
        return _grouped_linear(x_nd, weight_eod.to(x_nd.dtype), ends_e)

    @staticmethod
    def backward(ctx: Any, grad_no: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (x_nd, ends_e), weight_eod = ctx.saved_tensors, ctx.weight
        grad_no = grad_no.contiguous()
        grad_weight = later.gradient(weight_eod, lambda: _matrices_gradient(grad_no, x_nd, ends_e, weight_eod))
        return grouped_input_gradient(grad_no, weight_eod.to(grad_no.dtype), ends_e), grad_weight, None


class _CompiledSplitGrouped(torch.autograd.Function):
    """`_SplitGrouped` for the compiler to trace; the matrices must be a parameter."""

    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
        ctx.save_for_backward(x_nd, weight_eod, ends_e)
        return _grouped_linear(x_nd, weight_eod.to(x_nd.dtype), ends_e)

    @staticmethod
    def backward(ctx: Any, grad_no: Tensor) -> tuple[Tensor, None, None]:
        return _split_input_gradient(grad_no, *ctx.saved_tensors), None, None


@torch.library.custom_op("penstock::grouped_input_gradient", mutates_args=())
def _split_input_gradient(grad_no: Tensor, x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    grad_no = grad_no.contiguous()
    later.leave(weight_eod, partial(_matrices_gradient, grad_no, x_nd, ends_e))
    return grouped_input_gradient(grad_no, weight_eod.to(grad_no.dtype), ends_e)


@_split_input_gradient.register_fake
def _(grad_no: Tensor, x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    return torch.empty_like(x_nd, memory_format=torch.contiguous_format)


def _matrices_gradient(grad_no: Tensor, x_nd: Tensor, ends_e: Tensor, weight_eod: Tensor) -> Tensor:
    """`grouped_weight_gradient` in the weights' format."""
    return grouped_weight_gradient(grad_no, x_nd, ends_e).to(weight_eod.dtype)


def _grouped_linear(x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    if _in_one_kernel(x_nd, *weight_eod.shape[1:]):
        return F.grouped_mm(x_nd, weight_eod.transpose(1, 2), offs=ends_e)
    return _segment_linear(x_nd, weight_eod, ends_e)


def _in_one_kernel(x_nd: Tensor, *widths: int) -> bool:
    """Whether the grouped kernel takes such rows, and matrices of such widths."""
    return x_nd.is_cuda and x_nd.dtype == torch.bfloat16 and all(width * x_nd.element_size() % 16 == 0 for width in widths)


@torch.library.custom_op("penstock::segment_linear", mutates_args=())
def _segment_linear(x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    y_no = x_nd.new_empty(len(x_nd), weight_eod.shape[1])
    for expert, rows in _segments(ends_e):
        torch.mm(x_nd[rows], weight_eod[expert].t(), out=y_no[rows])
    return y_no


@torch.library.custom_op("penstock::segment_input_gradient", mutates_args=())
def _segment_input_gradient(grad_no: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    grad_no, grad_x = grad_no.contiguous(), grad_no.new_empty(len(grad_no), weight_eod.shape[2])
    for expert, rows in _segments(ends_e):
        torch.mm(grad_no[rows], weight_eod[expert], out=grad_x[rows])
    return grad_x


@torch.library.custom_op("penstock::segment_weight_gradient", mutates_args=())
def _segment_weight_gradient(grad_no: Tensor, x_nd: Tensor, ends_e: Tensor) -> Tensor:
    grad_no, grad_weight = grad_no.contiguous(), grad_no.new_zeros(len(ends_e), grad_no.shape[1], x_nd.shape[1])
    for expert, rows in _segments(ends_e):
        torch.mm(grad_no[rows].t(), x_nd[rows], out=grad_weight[expert])
    return grad_weight


@_segment_linear.register_fake
def _(x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    return x_nd.new_empty(len(x_nd), weight_eod.shape[1])


@_segment_input_gradient.register_fake
def _(grad_no: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    return grad_no.new_empty(len(grad_no), weight_eod.shape[2])


@_segment_weight_gradient.register_fake
def _(grad_no: Tensor, x_nd: Tensor, ends_e: Tensor) -> Tensor:
    return grad_no.new_empty(len(ends_e), grad_no.shape[1], x_nd.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_no: Tensor) -> tuple[Tensor, Tensor, None]:
    x_nd, weight_eod, ends_e = ctx.saved_tensors
    return _segment_input_gradient(grad_no, weight_eod, ends_e), _segment_weight_gradient(grad_no, x_nd, ends_e), None


_segment_linear.register_autograd(_backward, setup_context=_save)


def _segments(ends_e: Tensor) -> list[tuple[int, slice]]:
    """Experts that have rows, with their rows."""
    ends = ends_e.tolist()
    return [(expert, slice(start, end)) for expert, (start, end) in enumerate(zip([0, *ends[:-1]], ends)) if end > start]
