"""Clipping by the global gradient norm (Pascanu, Mikolov and Bengio, arXiv 1211.5063, section 3.2), without a host synchronisation.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)),   ‖g‖ = L2 norm over all gradients together

Where ranks hold parts of the gradients, and some parts several times, each rank says which elements it counts, so that every element counts
once over all ranks, and their sums of squares are added by `reduce`: all ranks get the same bits and scale by the same factor.

The norm stays a tensor on the device: the caller reads it when it reads the loss. A NaN or infinite gradient shows in the norm and
leaves gradients useless, so read the norm before the update. Cost: one read of all gradients, and one write when `max_norm` is above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Added to the norm before the division.
SMALL = 1e-6


@torch.no_grad()
def clip_grad_norm(
    grads: Sequence[Tensor],
    max_norm: float,
    counted: Sequence[Tensor] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    note: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """L2 norm of the whole gradient before clipping, a scalar; scales `grads` in place to at most `max_norm` unless that is 0.

    `grads` are this rank's gradients, at least one, on one device. `counted` are those of their elements that this rank counts (views;
    default: all), and `reduce` adds a scalar over all ranks (default: there is one rank). The scalar is float64 for float64 gradients, else float32.
    `note` is given the norms of the single tensors that are counted.
    """
    grads = list(grads)
    norms = part_norms(grads if counted is None else counted, grads[0])
    if note is not None:
        note(norms)
    norm = norms.norm()
    if reduce is not None:
        norm = reduce(norm.double().square()).sqrt().to(norm.dtype)
    scale_to(grads, norm, max_norm)
    return norm


@torch.no_grad()
def scale_to(grads: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients of the given whole norm in place to at most `max_norm`, unless that is 0."""
    if max_norm > 0:
        torch._foreach_mul_(list(grads), (max_norm / (norm + SMALL)).clamp(max=1.0))


@torch.no_grad()
def part_norms(counted: Sequence[Tensor], like: Tensor) -> Tensor:
    """L2 norms of the tensors that a rank counts, (n,), in the format of the norm of gradients like `like`; the norm of these is that of its part."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.stack(torch._foreach_norm(list(counted), dtype=dtype)) if counted else like.new_zeros(0, dtype=dtype)
