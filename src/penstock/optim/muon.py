"""Muon: momentum whose matrix is replaced by its nearest orthogonal one (Jordan et al., 2024).

    m ← β m + g;   u = g + β m (Nesterov);   w ← w − lr · (√max(1, rows/cols) · polar(u) + λ w)

The polar factor is approximated by five quintic Newton-Schulz iterations (coefficients of the reference implementation, which bring
all singular values near one without converging exactly). Matrices of one shape are iterated together as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(x_bmn: Tensor, steps: int = 5) -> Tensor:
    """Approximate polar factors of a batch of matrices (b, m, n)."""
    a, b, c = COEFFICIENTS
    tall = x_bmn.shape[-2] > x_bmn.shape[-1]
    x = x_bmn.mT if tall else x_bmn
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over 2-D matrices and 3-D stacks of them."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix once."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape[-2:]].append(p)
            for matrices in by_shape.values():
                self._update(matrices, **{k: group[k] for k in ("lr", "momentum", "weight_decay")})

    def _update(self, matrices: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        grads = [p.grad for p in matrices if p.grad is not None]
        buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in matrices]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        nesterov = torch._foreach_add(grads, buffers, alpha=momentum)
        flat = torch.cat([u.reshape(-1, *u.shape[-2:]) for u in nesterov])
        rows, cols = flat.shape[-2:]
        dtype = torch.bfloat16 if flat.is_cuda else torch.float32
        updates = orthogonalise(flat.to(dtype)).to(flat.dtype).split([u.numel() // (rows * cols) for u in nesterov])
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        for p, u in zip(matrices, updates):
            p.add_(u.view_as(p), alpha=-lr * max(1.0, rows / cols) ** 0.5)
