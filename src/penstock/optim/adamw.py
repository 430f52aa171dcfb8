"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) as one call of torch's fused kernel for each group of parameters.

    m ← β₁ m + (1 − β₁) g;   v ← β₂ v + (1 − β₂) g²;   w ← (1 − lr λ) w − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

The arithmetic is `torch.optim.AdamW(fused=True)`'s, bit for bit; what is left out is its bookkeeping, which sorts the tensors by device and
format anew in every step and costs a small model on a CPU as much time as the update itself. Parameters of a group must be on one
device and in one format. Cost: 8 bytes a parameter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from penstock.optim.groups import Groups


class FusedAdamW(Groups):
    """AdamW over groups of parameters with a `weight_decay` each; its state is allocated at once and updated in place."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        for group in self.param_groups:
            for p in group["params"]:
                step = torch.zeros((), device=p.device)  # where and in the format that the fused kernel wants it
                self.state[p] |= {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            pairs: list[tuple[Tensor, Tensor]] = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if not pairs:
                continue
            params, grads = ([pair[i] for pair in pairs] for i in range(2))
            averages, squares, steps = ([self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "step"))
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                params,
                grads,
                averages,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
