"""Products for weight gradients, left for later: what a pipeline does while it would otherwise wait.

The backward pass of a matrix product is two products: one for its input, which the layer before waits for, and one for its weight, which nobody
waits for before the optimizer. While `later.splitting`, layers run through operators whose backward pass can do the first and leave the second:
after `later.collect()` has been entered, each leaves a function; calling it computes the weight's gradient and adds it to `.grad`, or passes it on
through whatever made the weight out of a parameter (padding, a cut, a change of format). So a zero-bubble schedule (Qi et al., arXiv 2401.10241)
fills gaps with them. Gradients of norms, routers and embeddings are cheap and come at once.

torch.distributed.pipelining splits a backward pass from outside instead, by walking the autograd graph of every stage for every micro-batch
and running each node twice; hand-written operators would then compute their weights' gradients twice, communication included.

In a compiled block the backward pass is a graph, from which a product cannot be taken out. There it has an operator that is opaque to the compiler
(`_input_gradient`, and one for experts): it returns the input's gradient, which the graph needs and so neither drops nor doubles, and leaves the
weight's gradient, or computes it, as the switch says when it runs; to the graph the weight has no gradient. Two things follow. The operator is given
the weight's memory but not the parameter, since autograd hands a graph another tensor in place of one that has no gradient in it; so `later.know`
must have been told of the model, and the parameter is found by its address. And what is left must not be overwritten by the rest of the graph, to
which it is dead: such blocks are compiled without reuse of buffers (`KEEP_BUFFERS`).

Cost: what a product needs (its input and its output's gradient) is held until it is done. The switch is one for the process, as autograd calls
backward functions from threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Computes a weight's gradient, in the weight's format.
Product = Callable[[], Tensor]

#: Options of inductor for blocks that run while `later.splitting`: nothing in a graph is written where another value of it was.
KEEP_BUFFERS: dict[str, Any] = {"allow_buffer_reuse": False, "inplace_buffers": False}


class Later:
    """The process's switch: whether layers run through operators that can be split, and where their products go while one collects."""

    def __init__(self) -> None:
        self.splitting = False
        self._left: list[tuple[Tensor, Product]] | None = None
        self._models: WeakSet[nn.Module] = WeakSet()
        self._by_address: WeakValueDictionary[int, Tensor] = WeakValueDictionary()

    @contextmanager
    def split(self, on: bool = True) -> Iterator[None]:
        """Run layers so that their backward pass can be split, if `on`."""
        self.splitting, before = on, self.splitting
        try:
            yield
        finally:
            self.splitting = before

    @contextmanager
    def collect(self) -> Iterator[list[tuple[Tensor, Product]]]:
        """Backward passes leave the products of weight gradients in the list that is given, instead of computing them."""
        self._left, before = [], self._left
        try:
            yield self._left
        finally:
            self._left = before

    def gradient(self, weight: Tensor, product: Product) -> Tensor | None:
        """What an operator's backward returns for `weight`: the gradient, or None where it is left for later."""
        if self._left is None:
            return product()
        self._left.append((weight, product))
        return None

    def know(self, model: nn.Module) -> None:
        """Parameters of `model` may be among the weights whose gradients compiled blocks leave."""
        self._models.add(model)

    def parameter(self, weight: Tensor) -> Tensor:
        """The parameter of a known model that has the memory of `weight`; it may have moved since the last call, as a gathered one does."""
        address = weight.data_ptr()
        found = self._by_address.get(address)
        if found is None or found.data_ptr() != address:
            self._by_address = WeakValueDictionary({p.data_ptr(): p for model in self._models for p in model.parameters()})
            found = self._by_address[address]
        assert found.shape == weight.shape
        return found

    def leave(self, weight: Tensor, product: Callable[[Tensor], Tensor]) -> None:
        """In a compiled backward pass: the gradient of what is `weight` there, by `product(parameter)`, left or added to `.grad` at once."""
        parameter = self.parameter(weight)
        gradient = self.gradient(parameter, lambda: product(parameter))
        if gradient is not None:
            torch.autograd.backward(parameter, gradient)


later = Later()


def finish(left: list[tuple[Tensor, Product]]) -> None:
    """Compute the gradients that were left, and hand each to its weight; empties the list."""
    with torch.no_grad():
        weights, gradients = [weight for weight, _ in left], [product() for _, product in left]
    left.clear()
    if weights:
        torch.autograd.backward(weights, gradients)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ in the format of `x`: (..., in) and (out, in) to (..., out)."""
    if not later.splitting:
        return F.linear(x, weight.to(x.dtype))
    return (_CompiledSplitLinear if torch.compiler.is_compiling() else _SplitLinear).apply(x, weight)


class _SplitLinear(torch.autograd.Function):
    """It keeps the weight as it is, not a copy in the format of `x` for every micro-batch that is under way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        return grad @ weight.to(grad.dtype), later.gradient(weight, lambda: _weight_gradient(grad, x, weight))


class _CompiledSplitLinear(torch.autograd.Function):
    """`_SplitLinear` for the compiler to trace; `weight` must be a parameter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, weight = ctx.saved_tensors
        return _input_gradient(grad, x, weight), None


@torch.library.custom_op("penstock::linear_input_gradient", mutates_args=())
def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    later.leave(weight, partial(_weight_gradient, grad, x))
    return grad @ weight.to(grad.dtype)


@_input_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """gradᵀ x over all rows, in the weight's format."""
    return (grad.flatten(0, -2).t() @ x.flatten(0, -2)).to(weight.dtype)
