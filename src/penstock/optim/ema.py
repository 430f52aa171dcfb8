"""An exponential average of the weights, for evaluation and export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average ← d · average + (1 − d) · weights with d = min(decay, (1 + t) / (10 + t)) after t updates."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._updates = torch.zeros((), dtype=torch.float64)
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights in."""
        t = float(self._updates)
        decay = min(self._decay, (1 + t) / (10 + t))
        torch._foreach_lerp_(list(self._average.values()), [p.detach() for p in self._parameters.values()], 1 - decay)
        self._updates += 1

    @contextmanager
    @torch.no_grad()
    def swapped_in(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again, bit for bit, after it."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._load(self._average)
        try:
            yield
        finally:
            with torch.no_grad():
                self._load(own)

    def state_tensors(self) -> dict[str, Tensor]:
        """Live tensors by logical name."""
        return {f"ema.{name}": tensor for name, tensor in self._average.items()} | {"ema.updates": self._updates}

    def _load(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
