"""Matrix products of many experts at once, on rows sorted by expert, and the sorting itself.

On CUDA torch's grouped matmul does all experts in one kernel. Elsewhere, and where a width is not a multiple of 16 bytes, which that kernel
needs, a loop over the experts multiplies each one's contiguous rows into place. The loop is an opaque operator to the compiler, so a block
with experts compiles without a graph break although the rows of an expert are known only at run time.

The permutations have hand-written gradients that gather instead of scattering with atomics: faster, and the same bits in every run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_linear(x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    """Rows of expert e, up to `ends_e[e]`, times its matrix: (n, d) and (e, o, d) to (n, o), in the format of `x_nd`."""
    weight_eod = weight_eod.to(x_nd.dtype)
    if _in_one_kernel(x_nd, weight_eod):
        return F.grouped_mm(x_nd, weight_eod.transpose(1, 2), offs=ends_e)
    return _segment_linear(x_nd, weight_eod, ends_e)


def grouped_linear_gradients(grad_no: Tensor, x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `grouped_linear` for the rows (n, d) and the matrices (e, o, d), all in one format; for who writes a backward by hand."""
    if _in_one_kernel(x_nd, weight_eod):
        return F.grouped_mm(grad_no, weight_eod, offs=ends_e), F.grouped_mm(grad_no.t(), x_nd, offs=ends_e)
    return _segment_linear_backward(grad_no, x_nd, weight_eod, ends_e)


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


def _in_one_kernel(x_nd: Tensor, weight_eod: Tensor) -> bool:
    aligned = all(width * x_nd.element_size() % 16 == 0 for width in weight_eod.shape[1:])
    return x_nd.is_cuda and x_nd.dtype == torch.bfloat16 and aligned


@torch.library.custom_op("penstock::segment_linear", mutates_args=())
def _segment_linear(x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    y_no = x_nd.new_empty(len(x_nd), weight_eod.shape[1])
    for expert, rows in _segments(ends_e):
        torch.mm(x_nd[rows], weight_eod[expert].t(), out=y_no[rows])
    return y_no


@torch.library.custom_op("penstock::segment_linear_backward", mutates_args=())
def _segment_linear_backward(grad_no: Tensor, x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> tuple[Tensor, Tensor]:
    grad_no = grad_no.contiguous()
    grad_x, grad_weight = torch.empty_like(x_nd), torch.zeros_like(weight_eod)
    for expert, rows in _segments(ends_e):
        torch.mm(grad_no[rows], weight_eod[expert], out=grad_x[rows])
        torch.mm(grad_no[rows].t(), x_nd[rows], out=grad_weight[expert])
    return grad_x, grad_weight


@_segment_linear.register_fake
def _(x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    return x_nd.new_empty(len(x_nd), weight_eod.shape[1])


@_segment_linear_backward.register_fake
def _(grad_no: Tensor, x_nd: Tensor, weight_eod: Tensor, ends_e: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_nd), torch.empty_like(weight_eod)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_no: Tensor) -> tuple[Tensor, Tensor, None]:
    return (*_segment_linear_backward(grad_no, *ctx.saved_tensors), None)


_segment_linear.register_autograd(_backward, setup_context=_save)


def _segments(ends_e: Tensor) -> list[tuple[int, slice]]:
    """Experts that have rows, with their rows."""
    ends = ends_e.tolist()
    return [(expert, slice(start, end)) for expert, (start, end) in enumerate(zip([0, *ends[:-1]], ends)) if end > start]
