"""The training state in its one logical form: tensors by name, and a few plain numbers.

    model.<parameter or buffer>    optim.<parameter>.<moment>    ema.<parameter>

Everything else that decides a run's future is a pure function of its config: the data order of (seed, step), the
samples' randomness of (seed, step). So a snapshot needs no generator state and no data cursor but the step.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from penstock.optim import Optimizer, WeightAverage


@dataclass
class Progress:
    """The plain numbers of the state; `step` counts finished optimizer steps."""

    step: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    evals: list[dict[str, float]] = field(default_factory=list)
    recoveries: list[dict[str, Any]] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """As stored in a snapshot."""
        return asdict(self)


def state_tensors(model: nn.Module, optimizer: Optimizer, average: WeightAverage | None) -> dict[str, Tensor]:
    """The live tensors of the training state by logical name; loading fills them in place."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= optimizer.state_tensors()
    return tensors | (average.state_tensors() if average is not None else {})


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and full values of the model's weights, the same in every layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().to("cpu").contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
