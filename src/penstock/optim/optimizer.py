"""The optimizer as one object with logical names: AdamW, or Muon for the blocks' matrices and AdamW for the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from penstock.config import OptimSection
from penstock.optim.muon import Muon


class Optimizer:
    """One or two torch optimizers over named parameters."""

    def __init__(self, parts: list[torch.optim.Optimizer], names: dict[Tensor, str]) -> None:
        self._parts, self._names = parts, names
        self._peaks = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self) -> None:
        """Update all parameters."""
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def set_factor(self, factor: float) -> None:
        """Set every rate to `factor` times its peak."""
        for part, peaks in zip(self._parts, self._peaks):
            for group, peak in zip(part.param_groups, peaks):
                group["lr"] = peak * factor

    def state_tensors(self) -> dict[str, Tensor]:
        """Live moments by logical name, `optim.<parameter>.<moment>`."""
        return {
            f"optim.{self._names[p]}.{key}": value
            for part in self._parts
            for p, state in part.state.items()
            for key, value in sorted(state.items())
        }


def build_optimizer(model: nn.Module, optim: OptimSection) -> Optimizer:
    """The optimizer of `optim.kind` over the model's parameters, its state allocated."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    matrices = [p for p, name in names.items() if optim.kind == "muon" and name.startswith("blocks.") and p.ndim >= 2 and "router" not in name]
    taken = set(matrices)
    rest = [p for p in names if p not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
    for p in rest:
        adamw.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    parts: list[torch.optim.Optimizer] = [adamw]
    if matrices:
        muon = Muon(matrices, optim.muon_lr, optim.momentum, optim.weight_decay)
        for p in matrices:
            muon.state[p] = {"momentum": torch.zeros_like(p)}
        parts.append(muon)
    return Optimizer(parts, names)
