"""Rotary position embedding (Su et al., arXiv 2104.09864), and Llama 3's stretch of it for long contexts.

Pair i of a head's k numbers turns by the angle `position · theta^(-2i/k)`. The pairs are (i, i + k/2), the "rotate half"
convention of Hugging Face's weights, so those map onto ours without permuting. The angles depend on nothing that is trained:
they are computed once for each device and kept outside the module's state.

Llama 3.1's stretch (arXiv 2407.21783, section 3.4.2; formula as published with the weights): wavelengths longer than
`original_context / low` are stretched by `factor`, those shorter than `original_context / high` are left, and between the two
the frequency is blended linearly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from penstock.config import ModelSection, RopeScaling


class RotaryTable:
    """Cosines and sines of a model's angles; grows to the longest context asked for."""

    def __init__(self, model: ModelSection) -> None:
        self.frequencies = rotary_frequencies(model.head_dim, model.rope_theta, model.rope_scaling)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def angles(self, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine at positions `start` to `start + length - 1`, each (length, k/2), float32."""
        end = start + length
        if device not in self._tables or len(self._tables[device][0]) < end:
            angles_tk = torch.outer(torch.arange(max(end, 256), dtype=torch.float32), self.frequencies)
            self._tables[device] = (angles_tk.cos().to(device), angles_tk.sin().to(device))
        cos, sin = self._tables[device]
        return cos[start:end], sin[start:end]


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Angle per position of each pair, (k/2,), float32 on the CPU."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    return frequencies if scaling.factor == 1.0 else _stretched(frequencies, scaling)


def rotate(x_bthk: Tensor, cos_tk: Tensor, sin_tk: Tensor) -> Tensor:
    """Turn every head of (b, t, h, k) by its position's angles, in float32 at least, keeping the format."""
    first, second = x_bthk.chunk(2, dim=-1)
    cos, sin = cos_tk[:, None, :], sin_tk[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_bthk.dtype)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    turns = scaling.original_context * frequencies / (2 * math.pi)  # full turns within the original context
    blend = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0.0, 1.0)  # 0: stretch fully, 1: leave
    return frequencies * (blend + (1.0 - blend) / scaling.factor)
