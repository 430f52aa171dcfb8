"""The optimizer as one object with logical names: AdamW, or Muon for the blocks' matrices and AdamW for the rest.

Which parameter goes where is decided by its name and shape, not by its module's class. With `optim.kind = "muon"` the blocks' matrices
(stacked experts included, routers not) are Muon's; embedding, head, routers and norms are AdamW's. Weight decay is decoupled (Loshchilov
and Hutter, arXiv 1711.05101) and applies to everything of two or more dims, embedding and head included; norms have none. Tied
parameters appear once, under the first of their names.

The tensors may be parts of the parameters, as a rank of a parallel layout holds them, empty ones too: AdamW works on each element
alone, and Muon gets its whole matrices from a `SharedMatrices`.

All state is allocated at once and never replaced, so the tensors of `state_tensors` can be loaded in place, and a fresh optimizer that
took another's state goes on bit for bit. Cost: AdamW holds 8 bytes a parameter, Muon 4.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from penstock.config import OptimSection
from penstock.optim.adamw import FusedAdamW
from penstock.optim.groups import Groups
from penstock.optim.muon import Muon, SharedMatrices


class Optimizer:
    """One or two optimizers over named parameters; `build_optimizer` makes it."""

    def __init__(self, parts: list[Groups], names: dict[Tensor, str]) -> None:
        self._parts, self._names = parts, names
        self._peaks = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self._parts:
            part.step()

    def set_factor(self, factor: float) -> None:
        """Set every rate to `factor` times its peak."""
        for part, peaks in zip(self._parts, self._peaks):
            for group, peak in zip(part.param_groups, peaks):
                group["lr"] = peak * factor

    def follow(self, optim: OptimSection) -> None:
        """Go on with other rates, decays and betas, from the next `set_factor` on; the kind must be what it was."""
        for part in self._parts:
            for group in part.param_groups:
                group |= _muon_settings(optim) if isinstance(part, Muon) else _adamw_settings(optim, decays=group["params"][0].ndim >= 2)
        self._peaks = [[group["lr"] for group in part.param_groups] for part in self._parts]

    def state_tensors(self) -> dict[str, Tensor]:
        """Live state by logical name: `optim.<parameter>.exp_avg`, `.exp_avg_sq` and `.step` (AdamW), or `.momentum` (Muon)."""
        return {
            f"optim.{self._names[p]}.{key}": value
            for part in self._parts
            for p, state in part.state.items()
            for key, value in sorted(state.items())
        }


def build_optimizer(named: dict[str, Tensor], optim: OptimSection, shared: SharedMatrices | None = None) -> Optimizer:
    """The optimizer of `optim.kind` over tensors by logical name (`.grad` set before each step), its state allocated.

    `shared` joins matrices of which each rank holds a part; without it every matrix is whole.
    """
    matrices = {name: p for name, p in named.items() if optim.kind == "muon" and is_block_matrix(name, p)}
    others = [p for name, p in named.items() if name not in matrices]
    parts: list[Groups] = [_adamw(others, optim)] if others else []
    if matrices:
        parts.append(Muon(list(matrices.values()), optim.muon_lr, optim.momentum, optim.weight_decay, shared, list(matrices)))
    return Optimizer(parts, {p: name for name, p in named.items()})


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a linear map (or a stack of them) inside a block, which is what Muon is for."""
    return name.startswith("blocks.") and parameter.ndim >= 2 and "router" not in name.split(".")


def _adamw_settings(optim: OptimSection, decays: bool) -> dict[str, Any]:
    """The settings of a group of AdamW's, by the names it has for them."""
    weight_decay = optim.weight_decay if decays else 0.0
    return {"lr": optim.lr, "betas": (optim.beta1, optim.beta2), "eps": optim.eps, "weight_decay": weight_decay}


def _muon_settings(optim: OptimSection) -> dict[str, Any]:
    return {"lr": optim.muon_lr, "momentum": optim.momentum, "weight_decay": optim.weight_decay}


def _adamw(parameters: list[Tensor], optim: OptimSection) -> FusedAdamW:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return FusedAdamW([g for g in groups if g["params"]], lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)
