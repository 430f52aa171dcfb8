"""Cross-entropy of a language model without ever holding the logits of a whole batch.

With a vocabulary of 128 k, the logits of 8 k tokens are 4 GiB in float32, more than a small model's weights. Here they exist for
`chunk_tokens` tokens at a time: the forward pass computes a chunk's logits, its loss and, since nothing but a scalar factor is still
to come, at once its gradients for the hidden states and the head, and drops the logits (the idea of Liger Kernel's fused linear
cross-entropy, arXiv 2410.10989, section 3.2). The backward pass only multiplies by that factor.

A token's loss is log Σ exp(z) - z[target], its gradient for the logits softmax(z) - onehot(target). The softmax is float32 at least,
and the head's gradient is summed in float32. The arithmetic is the plain path's, three matrix products. Cost: the gradients are
computed even if backward is never called, except under `no_grad`; and backward can be called once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100

#: Turns logits (n, v) and targets (n,) into the summed loss and the gradient of the logits; it may overwrite the logits.
Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TokenLoss(Protocol):
    """What `lm_loss` is to a decoder; a decoder whose vocabulary is cut over ranks has another."""

    def __call__(self, hidden_btd: Tensor, head_weight_vd: Tensor, targets_bt: Tensor, *, chunk_tokens: int, kernel: Kernel | None = None) -> Tensor:
        """Sum of the cross-entropies of `targets_bt`."""


def lm_loss(hidden_btd: Tensor, head_weight_vd: Tensor, targets_bt: Tensor, *, chunk_tokens: int, kernel: Kernel | None = None) -> Tensor:
    """Sum of the cross-entropies of `targets_bt` (-100: none) under the head's logits, a float32 scalar (float64 for float64).

    At most `chunk_tokens` tokens' logits exist at a time. `kernel` replaces `softmax_gradient`, with a compiled one say.
    """
    hidden_nd, targets_n = hidden_btd.flatten(0, -2), targets_bt.flatten()
    if torch.is_grad_enabled() and (hidden_nd.requires_grad or head_weight_vd.requires_grad):
        return _ChunkedLoss.apply(hidden_nd, head_weight_vd, targets_n, chunk_tokens, kernel or softmax_gradient)
    weight_vd = head_weight_vd.to(hidden_nd.dtype)
    chunks = zip(hidden_nd.split(chunk_tokens), targets_n.split(chunk_tokens))
    sums = [F.cross_entropy(wide(h @ weight_vd.t()), t, ignore_index=IGNORE, reduction="sum") for h, t in chunks]
    return torch.stack(sums).sum()


def softmax_gradient(logits_nv: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy, and its gradient for the logits in their format."""
    log_p = F.log_softmax(wide(logits_nv), dim=-1)
    kept = (targets_n != IGNORE).unsqueeze(1)
    index = targets_n.clamp_min(0).unsqueeze(1)
    loss = -(log_p.gather(1, index) * kept).sum()
    gradient = log_p.exp_().scatter_add_(1, index, torch.full_like(index, -1, dtype=log_p.dtype))
    return loss, gradient.mul_(kept).to(logits_nv.dtype)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_nd: Tensor, head_vd: Tensor, targets_n: Tensor, chunk: int, kernel: Kernel) -> Tensor:
        """The loss, and by the way its gradients."""
        weight_vd = head_vd.to(hidden_nd.dtype)
        grad_hidden = torch.empty_like(hidden_nd)
        grad_head = torch.zeros_like(head_vd)
        losses = []
        for hidden, targets, out in zip(hidden_nd.split(chunk), targets_n.split(chunk), grad_hidden.split(chunk)):
            loss, grad_nv = kernel(hidden @ weight_vd.t(), targets)
            losses.append(loss)
            torch.mm(grad_nv, weight_vd, out=out)
            add_product(grad_head, grad_nv.t(), hidden)
        ctx.gradients = (grad_hidden, grad_head)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("lm_loss hands out its gradients once; call it again for a second backward pass")
        grad_hidden, grad_head = ctx.gradients
        ctx.gradients = None  # scaled in place below: the head's gradient may be gigabytes
        return grad_hidden.mul_(factor), grad_head.mul_(factor), None, None, None


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product: total += a @ b, where `total` may be of a wider format than the factors."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total += a @ b


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()
