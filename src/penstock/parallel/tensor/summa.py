"""Matrix products on a q × q grid of ranks that never gather an operand: SUMMA (van de Geijn & Watts, 1997).

Rank (i, j) of the grid holds the block x[i, j] of the activations, rows i and features j, and the block W[j, i] of a matrix (out, in): `out`
over the grid's columns, `in` over its rows. The products of Tesseract (Wang et al., arXiv 2105.14500, section 3.1), with W read as that matrix:

    multiply              y[i, j] = Σ_s x[i, s] W[j, s]ᵀ     features over columns → features over columns: the layers'
    multiply_transposed   z[i, s] = Σ_j x[i, j] H[s, j]ᵀ     for a head H (vocabulary over rows, d over columns): the logits

In step s of q the panel x[i, s] is broadcast along the grid's row (axis `column`) and the block that grid row s holds down the grid's column
(axis `row`), multiplied and added to what is there; the transposed product sums its result onto column s instead. Backward is the same loop: the
gradients of a step's local product belong to the panel and to the block, so each is summed onto the rank that holds it, or stays. A rank holds
one panel and one block of others at a time. The local product is given as a `Product`, so that stacks of experts run through the same
loops: rows may then differ in number between grid rows, and be sorted differently; blocks have one shape everywhere (`parallel/padding.py`).

Cost, in elements that a rank sends (ring algorithms, `comm/meter.py`), for n rows on each grid row and the full widths `in` and `out`:

                                multiply                        multiply_transposed
    column.activations          3 n·in (q-1)/q                  2 n·out (q-1)/q
    row.weights                 2 in·out (q-1)/q²               2 in·out (q-1)/q²
    row.weight_gradients        in·out (q-1)/q²                 in·out (q-1)/q²

of which forward sends one n·in (n·out) and one in·out. All are sent in the format of x; sums over s are float32 at least. The gradient of a block
is summed over the grid's rows, and still a share over depth and data. Matrices that read the same x cost its panels once if their blocks are
laid on top of each other. When not to use it: with few tokens, because the matrices travel whatever n is; 1-D then sends less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.comm import Axis, opaque
from penstock.models.grouped import grouped_input_gradient, grouped_linear, grouped_weight_gradient
from penstock.models.later import later
from penstock.models.layers import wide

_ACTIVATIONS, _WEIGHTS, _WEIGHT_GRADIENTS = "activations", "weights", "weight_gradients"


class Grid(NamedTuple):
    """The two axes of the grid: ranks that differ in row, and ranks that differ in column; of the same size."""

    row: Axis
    column: Axis

    @property
    def size(self) -> int:
        """q, the ranks along each side."""
        return self.row.size


class Product(NamedTuple):
    """What a rank does with one panel and one block.

    `forward(x, block)` is rows (n, in) times a block to (n, out); `for_panel(grad, block)` its gradient for the rows, `for_block(grad, x)` for the
    block, contiguous.
    """

    forward: Callable[[Tensor, Tensor], Tensor]
    for_panel: Callable[[Tensor, Tensor], Tensor]
    for_block: Callable[[Tensor, Tensor], Tensor]


#: The product with one matrix, blocks (out, in).
DENSE = Product(F.linear, lambda grad, block: grad @ block, lambda grad, x: grad.t() @ x)


def grouped(ends_e: Tensor) -> Product:
    """The product with a stack of experts, blocks (e, out, in), of rows sorted by expert up to `ends_e`, this grid row's own."""
    return Product(
        lambda x, block: grouped_linear(x, block, ends_e),
        lambda grad, block: grouped_input_gradient(grad, block, ends_e),
        lambda grad, x: grouped_weight_gradient(grad, x, ends_e),
    )


@opaque
def linear(x_nd: Tensor, block: Tensor, grid: Grid, product: Product = DENSE) -> Tensor:
    """`multiply` through autograd, in the format of `x_nd`, which is also the block's."""
    return _Linear.apply(x_nd, block, grid, product)


def multiply(x_nd: Tensor, block: Tensor, grid: Grid, product: Product) -> Tensor:
    """x Wᵀ: this rank's features (n, d) and block to its output features (n, o)."""
    y_no: Tensor | None = None
    for step in range(grid.size):
        part = product.forward(_from(x_nd, grid.column, step, _ACTIVATIONS), _from(block, grid.row, step, _WEIGHTS))
        y_no = _added(y_no, part)
    assert y_no is not None
    return y_no.to(x_nd.dtype)


def multiply_input_gradient(grad_no: Tensor, x_nd: Tensor, block: Tensor, grid: Grid, product: Product) -> Tensor:
    """Gradient of `multiply` for this rank's features."""
    grad_x = x_nd
    for step in range(grid.size):
        theirs = _from(block, grid.row, step, _WEIGHTS)
        grad_x = _onto(product.for_panel(grad_no, theirs), grad_x, grid.column, step, _ACTIVATIONS)
    return grad_x


def multiply_weight_gradient(grad_no: Tensor, x_nd: Tensor, block: Tensor, grid: Grid, product: Product) -> Tensor:
    """Gradient of `multiply` for this rank's block."""
    grad_block = block
    for step in range(grid.size):
        panel = _from(x_nd, grid.column, step, _ACTIVATIONS)
        grad_block = _onto(product.for_block(grad_no, panel), grad_block, grid.row, step, _WEIGHT_GRADIENTS)
    return grad_block


def multiply_transposed(x_nd: Tensor, block: Tensor, grid: Grid, product: Product = DENSE) -> Tensor:
    """x Hᵀ for a matrix whose outputs lie over the grid's rows: this rank's features (n, d) to its part (n, v) of the outputs, over columns."""
    z_nv = x_nd
    for step in range(grid.size):
        part = product.forward(x_nd, _from(block, grid.row, step, _WEIGHTS))
        z_nv = _onto(part, z_nv, grid.column, step, _ACTIVATIONS)
    return z_nv


def multiply_transposed_gradients(grad_nv: Tensor, x_nd: Tensor, block: Tensor, grid: Grid, product: Product = DENSE) -> tuple[Tensor, Tensor]:
    """Gradients of `multiply_transposed` for this rank's features and block."""
    grad_x: Tensor | None = None
    grad_block = block
    for step in range(grid.size):
        panel, theirs = _from(grad_nv, grid.column, step, _ACTIVATIONS), _from(block, grid.row, step, _WEIGHTS)
        grad_x = _added(grad_x, product.for_panel(panel, theirs))
        grad_block = _onto(product.for_block(panel, x_nd), grad_block, grid.row, step, _WEIGHT_GRADIENTS)
    assert grad_x is not None
    return grad_x.to(x_nd.dtype), grad_block


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, block: Tensor, grid: Grid, product: Product) -> Tensor:
        ctx.save_for_backward(x_nd, block)
        ctx.call = (grid, product)
        return multiply(x_nd, block, grid, product)

    @staticmethod
    def backward(ctx: Any, grad_no: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        grad_no, (x_nd, block) = grad_no.contiguous(), ctx.saved_tensors
        grad_x = multiply_input_gradient(grad_no, x_nd, block, *ctx.call)
        for_block = later.gradient(block, lambda: multiply_weight_gradient(grad_no, x_nd, block, *ctx.call))
        return grad_x, for_block, None, None


def _from(mine: Tensor, axis: Axis, source: int, purpose: str) -> Tensor:
    """The tensor of the rank at place `source`; this rank's own is left as it is."""
    tensor = mine.contiguous() if axis.index == source else torch.empty_like(mine, memory_format=torch.contiguous_format)
    return axis.broadcast(tensor, source, purpose)


def _onto(part: Tensor, before: Tensor, axis: Axis, target: int, purpose: str) -> Tensor:
    """On the rank at place `target` the sum of all ranks' `part`, elsewhere `before`."""
    summed = axis.reduce(part, target, purpose)
    return summed if axis.index == target else before


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return wide(part) if total is None else total.add_(part)
