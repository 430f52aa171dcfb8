"""Muon: momentum whose matrix is replaced by its nearest orthogonal one (Jordan et al., 2024; Liu et al., arXiv 2502.16982).

    m ← β m + g;   u = g + β m (Nesterov);   w ← (1 − lr λ) w − lr √max(1, rows/cols) · polar(u)

polar(u) = U Vᵀ for u = U S Vᵀ is the steepest descent under the spectral norm: every direction of the update moves the layer's output
alike, so rare directions learn as fast as common ones. It is approximated by five quintic Newton-Schulz iterations with the reference
implementation's coefficients, which bring the singular values near one (0.7 to 1.2) without converging exactly; that trains as well and
needs products of matrices only. The factor √max(1, rows/cols) is the reference's too. (Moonshot's 0.2 √max(rows, cols), which lets
Muon share AdamW's rate, is not used: `optim.muon_lr` is a rate of its own.)

Cost: one moment instead of AdamW's two, and per step about 5 (4 a² b + 2 a³) FLOPs for a matrix with sides a ≤ b, whatever the batch: next to
nothing beside a batch of a hundred thousand tokens, as much as forward and backward at a few hundred. Matrices of one shape are
iterated as one batch, which keeps small ones efficient, in bfloat16 on CUDA (the iteration is insensitive to rounding) and in the
weights' own format on the CPU. Where ranks hold parts of a matrix, momentum and weight are updated part by part, and only u
travels, to be orthogonalised whole (`SharedMatrices`). When not to use it: for embeddings and heads, whose rows are looked up or scored
one by one, routers and norms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from penstock.optim.groups import Groups

COEFFICIENTS = (3.4445, -4.7750, 2.0315)

#: Elements iterated at once: enough to fill a GPU, and a bound on the working memory (about 14 bytes an element) of large models.
CHUNK_ELEMENTS = 1 << 26


def orthogonalise(x_bmn: Tensor, steps: int = 5) -> Tensor:
    """Approximate polar factors of a batch of matrices (b, m, n), in its format."""
    a, b, c = COEFFICIENTS
    tall = x_bmn.shape[-2] > x_bmn.shape[-1]
    x = x_bmn.mT if tall else x_bmn
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class SharedMatrices(Protocol):
    """Matrices and stacks of them of which each rank holds a part; told apart by name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""

    def map(self, function: Callable[[Tensor], Tensor], parts: dict[str, Tensor], room: int) -> dict[str, Tensor]:
        """This rank's parts of `function(whole matrices)`, from its parts of those; every rank must call it with the same names.

        `function` maps batches of whole matrices (b, m, n) of about `room` elements to as many of the same shape.
        """


class Muon(Groups):
    """Muon over matrices and stacks of them (experts), each matrix of a stack on its own.

    With `shared`, the tensors have `names` and may be parts. A missing gradient then counts as zero, since another rank may have one; without, its
    matrix is passed over.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        lr: float,
        momentum: float,
        weight_decay: float,
        shared: SharedMatrices | None = None,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__([{"params": params}], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._shared, self._names = shared, names
        for p, state in self.state.items():
            state["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            if self._shared is not None:
                self._update_parts(self._shared, group["params"], group["lr"], group["momentum"], group["weight_decay"])
                continue
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    by_shape[p.shape[-2:]] += zip(_matrices(p), _matrices(p.grad), _matrices(self.state[p]["momentum"]))
            for triples in by_shape.values():
                for chunk in _chunks(triples):
                    _update(chunk, group["lr"], group["momentum"], group["weight_decay"])

    def _update_parts(self, shared: SharedMatrices, weights: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
        buffers = [self.state[p]["momentum"] for p in weights]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        nesterov = [_compute_format(u) for u in torch._foreach_add(grads, buffers, alpha=momentum)]
        polar = shared.map(orthogonalise, dict(zip(self._names, nesterov)), CHUNK_ELEMENTS)
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        for name, weight in zip(self._names, weights):
            weight.add_(polar[name].to(weight.dtype), alpha=-lr * _scale(shared.shape(name)))


def _update(triples: list[tuple[Tensor, Tensor, Tensor]], lr: float, momentum: float, weight_decay: float) -> None:
    """Update matrices of one shape, given as (weight, gradient, momentum) views."""
    weights, grads, buffers = ([triple[i] for triple in triples] for i in range(3))
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    nesterov_bmn = torch.stack(torch._foreach_add(grads, buffers, alpha=momentum))
    polar_bmn = orthogonalise(_compute_format(nesterov_bmn)).to(nesterov_bmn.dtype)
    torch._foreach_mul_(weights, 1 - lr * weight_decay)
    torch._foreach_add_(weights, list(polar_bmn.unbind()), alpha=-lr * _scale(polar_bmn.shape))


def _compute_format(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_cuda else tensor


def _scale(shape: tuple[int, ...]) -> float:
    rows, cols = shape[-2:]
    return max(1.0, rows / cols) ** 0.5


def _matrices(tensor: Tensor) -> list[Tensor]:
    """Views of the matrices in a tensor of two or more dims."""
    return [tensor] if tensor.ndim == 2 else list(tensor.flatten(0, -3).unbind())


def _chunks(triples: list[tuple[Tensor, Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    size = max(1, CHUNK_ELEMENTS // triples[0][0].numel())
    return (triples[i : i + size] for i in range(0, len(triples), size))
