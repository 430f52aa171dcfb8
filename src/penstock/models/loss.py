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

from penstock.models.layers import wide

IGNORE = -100

#: Turns logits (n, v) and targets (n,) into the summed loss and the gradient of the logits; it may overwrite the logits.
Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: Loss of one chunk from hidden states (n, d), the head in their format (v, d) and targets (n,). Given two tensors, it writes the gradient of
#: the hidden states into the first, in their format, and adds the head's to the second, in the head's own format; given None, it need not.
LossStep = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None], Tensor]


class TokenLoss(Protocol):
    """What `lm_loss` is to a decoder; a decoder whose vocabulary is cut over ranks has another."""

    def __call__(self, hidden_btd: Tensor, head_weight_vd: Tensor, targets_bt: Tensor, *, chunk_tokens: int, kernel: Kernel | None = None) -> Tensor:
        """Sum of the cross-entropies of `targets_bt`."""


def lm_loss(hidden_btd: Tensor, head_weight_vd: Tensor, targets_bt: Tensor, *, chunk_tokens: int, kernel: Kernel | None = None) -> Tensor:
    """Sum of the cross-entropies of `targets_bt` (-100: none) under the head's logits, a float32 scalar (float64 for float64).

    At most `chunk_tokens` tokens' logits exist at a time. `kernel` replaces `softmax_gradient`, with a compiled one say.
    """
    return chunked_loss(hidden_btd, head_weight_vd, targets_bt, chunk_tokens, _plain_step(kernel or softmax_gradient))


def chunked_loss(hidden_btd: Tensor, head_weight_vd: Tensor, targets_bt: Tensor, chunk_tokens: int, step: LossStep) -> Tensor:
    """The sum of `step`'s losses over chunks of `chunk_tokens` tokens, differentiable by the gradients it gives."""
    hidden_nd, targets_n = hidden_btd.flatten(0, -2), targets_bt.flatten()
    if torch.is_grad_enabled() and (hidden_nd.requires_grad or head_weight_vd.requires_grad):
        return _ChunkedLoss.apply(hidden_nd, head_weight_vd, targets_n, chunk_tokens, step)
    weight_vd = head_weight_vd.to(hidden_nd.dtype)
    chunks = zip(hidden_nd.split(chunk_tokens), targets_n.split(chunk_tokens))
    return torch.stack([step(hidden, weight_vd, targets, None) for hidden, targets in chunks]).sum()


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
    def forward(ctx: Any, hidden_nd: Tensor, head_vd: Tensor, targets_n: Tensor, chunk: int, step: LossStep) -> Tensor:
        """The loss, and by the way its gradients."""
        weight_vd = head_vd.to(hidden_nd.dtype)
        grad_hidden = torch.empty_like(hidden_nd)
        grad_head = torch.zeros_like(head_vd)
        losses = []
        for hidden, targets, out in zip(hidden_nd.split(chunk), targets_n.split(chunk), grad_hidden.split(chunk)):
            losses.append(step(hidden, weight_vd, targets, (out, grad_head)))
        ctx.gradients = (grad_hidden, grad_head)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("lm_loss hands out its gradients once; call it again for a second backward pass")
        grad_hidden, grad_head = ctx.gradients
        ctx.gradients = None  # scaled in place below: the head's gradient may be gigabytes
        return grad_hidden.mul_(factor), grad_head.mul_(factor), None, None, None


def _plain_step(kernel: Kernel) -> LossStep:
    def step(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, gradients: tuple[Tensor, Tensor] | None) -> Tensor:
        logits_nv = hidden_nd @ weight_vd.t()
        if gradients is None:
            return F.cross_entropy(wide(logits_nv), targets_n, ignore_index=IGNORE, reduction="sum")
        loss, grad_nv = kernel(logits_nv, targets_n)
        torch.mm(grad_nv, weight_vd, out=gradients[0])
        add_product(gradients[1], grad_nv.t(), hidden_nd)
        return loss

    return step


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product: total += a @ b, where `total` may be of a wider format than the factors."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total += a @ b
