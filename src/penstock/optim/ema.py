"""An exponential average of the weights, for evaluation, samples and export (Polyak averaging).

    average ← d · average + (1 − d) · weights,   d = min(decay, (1 + t) / (10 + t)) after t updates

The average of the last 1 / (1 − decay) steps has little of the noise of a high rate, so at any moment it is nearly as good as weights
whose rate has been decayed, and one run shows what it has learnt all the way (Hägele et al., arXiv 2405.18392). The
smaller d of the first steps lets the initial weights be forgotten quickly; it is the usual warm-up of such averages.

Cost: 4 bytes a parameter held, one pass over the weights each step, a second copy of the weights while they are swapped. When not to
use it: with a rate that decays to zero only the end matters, and there live and averaged weights are alike. Buffers (the balancing
bias of experts) are not averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """The average of `named` weights (the parameters by name, or what this rank holds of each), which starts as their present values."""

    def __init__(self, named: dict[str, Tensor], decay: float) -> None:
        self._parameters = dict(named)
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._updates = torch.zeros((), dtype=torch.float64)  # on the CPU, so that reading it waits for nothing
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights in."""
        t = float(self._updates)
        decay = min(self._decay, (1 + t) / (10 + t))
        torch._foreach_lerp_(list(self._average.values()), [p.detach() for p in self._parameters.values()], 1 - decay)
        self._updates += 1

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The weights are the averaged ones inside the block, and their own again, bit for bit, after it, also after an error."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._load(self._average)
        try:
            yield
        finally:
            self._load(own)

    def state_tensors(self) -> dict[str, Tensor]:
        """Live tensors by logical name, `ema.<parameter>`, and `ema.updates`; loading in place resumes the average."""
        return {f"ema.{name}": tensor for name, tensor in self._average.items()} | {"ema.updates": self._updates}

    @torch.no_grad()
    def _load(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
