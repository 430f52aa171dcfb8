"""Products for weight gradients, left for later: what a pipeline does while it would otherwise wait.

The backward pass of a matrix product is two products: one for its input, which the layer before waits for, and one for its weight, which nobody
waits for before the optimizer. While `later.splitting`, layers run through operators whose backward pass can do the first and leave the second:
after `later.collect()` has been entered, each leaves a function; calling it computes the weight's gradient and adds it to `.grad`, or passes it on
through whatever made the weight out of a parameter (padding, a cut, a change of format). So a zero-bubble schedule (Qi et al., arXiv 2401.10241)
fills gaps with them. Gradients of norms, routers and embeddings are cheap and come at once.

torch.distributed.pipelining splits a backward pass from outside instead, by walking the autograd graph of every stage for every micro-batch
and running each node twice; hand-written operators would then compute their weights' gradients twice, communication included.

Cost: what a product needs (its input and its output's gradient) is held until it is done. The switch is one for the process, as autograd calls
backward functions from threads of its own. When not to use it: compiled, as the compiler would fold the switch into its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Computes a weight's gradient, in the weight's format.
Product = Callable[[], Tensor]


class Later:
    """The process's switch: whether layers run through operators that can be split, and where their products go while one collects."""

    def __init__(self) -> None:
        self.splitting = False
        self._left: list[tuple[Tensor, Product]] | None = None

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
    return _SplitLinear.apply(x, weight) if later.splitting else F.linear(x, weight.to(x.dtype))


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
        product = lambda: (grad.flatten(0, -2).t() @ x.flatten(0, -2)).to(weight.dtype)  # noqa: E731 (a closure, called once or kept)
        return grad @ weight.to(grad.dtype), later.gradient(weight, product)
