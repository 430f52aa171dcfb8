"""The small layers everything is made of: a linear map, the embedding, RMSNorm and the SwiGLU feed-forward.

Parameters are float32 masters; a layer computes in the format of the activations it is given, so bfloat16 training needs no autocast:
the matrix is cast where it is used, and the gradient of the cast hands a float32 gradient back. There are no biases.

Shape suffixes in this package: b batch, t tokens of a sequence, n tokens of a batch (b·t), d model width, f feed-forward width,
h query heads, g key-value heads, k head width, v vocabulary, e experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.models.later import linear


class Linear(nn.Module):
    """y = x Wᵀ, computed in the format of `x`; `weight` is (out, in), float32."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight)


class Embedding(nn.Module):
    """The row of each token; `weight` is (vocabulary, width), float32. (torch's own draws initial values, for which it imports its compiler.)"""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, width))

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """Map (b, t) to (b, t, d)."""
        return F.embedding(tokens_bt, self.weight)


class RMSNorm(nn.Module):
    """y = w · x / sqrt(mean(x²) + eps) over the last dim (Zhang & Sennrich, arXiv 1910.07467), computed in float32 at least."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width), keeping the format of `x`."""
        x_wide = wide(x)
        scale = torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + self.eps)
        return (x_wide * scale * self.weight).to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate: nn.Module = Linear(dim, hidden)
        self.up: nn.Module = Linear(dim, hidden)
        self.down: nn.Module = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64: the format of sums that must not be rounded to the compute format."""
    return x if x.dtype == torch.float64 else x.float()
