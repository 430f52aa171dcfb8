"""Clipping by the global gradient norm (Pascanu, Mikolov and Bengio, arXiv 1211.5063, section 3.2), without a host synchronisation.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)),   ‖g‖ = L2 norm over all gradients together

The norm stays a tensor on the device: the caller reads it when it reads the loss. A NaN or infinite gradient shows in the norm and
leaves gradients useless, so read the norm before the update. Cost: one read of all gradients, and one write when `max_norm` is above 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """L2 norm of all gradients together, before clipping (float32 scalar); scales them in place to at most `max_norm` unless that is 0.

    Parameters without a gradient are passed over; at least one must have one. Gradients are on one device and whole.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack(torch._foreach_norm(grads, dtype=torch.float32)).norm()
    if max_norm > 0:
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
