"""Cross-entropy over a vocabulary that is cut over ranks, chunk by chunk, so that no rank ever holds all logits of a token or all tokens' logits.

As `models/loss.py`: a chunk's logits, its loss and its gradients are computed together and the logits dropped. Softmax over ranks is three small
exchanges of one number a token: the maximum, then the sum of exponentials and the target's logit (Shoeybi et al., arXiv 1909.08053, section 3).

On the 1-D and 2-D grid a rank multiplies its features (d/x) with its vocabulary rows (v/y); the sum over the columns leaves each with v/(y x)
logits. Elements one rank sends for n tokens: hidden states 2 n (d/x)(y - 1)/y, logits and their gradients 2 n v (x - 1)/(y x), softmax
3 · 2 n (p - 1)/p.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.comm import Axis, gather
from penstock.models.loss import IGNORE, Kernel, add_product, wide
from penstock.parallel.placement import padded_part


class GridLoss:
    """`lm_loss` for hidden states (b, t/y, d/x) and a head (v/y, d/x); every rank of the grid returns the loss of all its tokens."""

    def __init__(self, vocab: int, row: Axis, column: Axis, both: Axis) -> None:
        """`both` is row and column taken together, over which the logits are cut."""
        self.row, self.column, self.both = row, column, both
        self.part = padded_part(vocab, row.size)  # rows of the head that a row of the grid has, but for the last
        self.piece = padded_part(self.part, column.size)

    def __call__(self, hidden_btd: Tensor, head_weight_vd: Tensor, targets_bt: Tensor, *, chunk_tokens: int, kernel: Kernel | None = None) -> Tensor:
        """Sum of the cross-entropies of `targets_bt` (b, t), the same on all ranks of the grid; `kernel` is for uncut vocabularies."""
        hidden_nd = gather(hidden_btd, self.row, 1, "head").flatten(0, 1)
        return _Loss.apply(hidden_nd, head_weight_vd, targets_bt.flatten(), chunk_tokens, self, torch.is_grad_enabled())

    def logits(self, hidden_nd: Tensor, weight_vd: Tensor) -> Tensor:
        """This rank's piece of the vocabulary's logits, minus infinity where the piece reaches beyond its row's part."""
        z_nv = F.pad(hidden_nd @ weight_vd.t(), (0, self.piece * self.column.size - len(weight_vd)))
        z_nv = wide(self.column.reduce_scatter(z_nv, 1, "head"))
        filled = self.filled(weight_vd)
        return F.pad(z_nv[:, :filled], (0, self.piece - filled), value=float("-inf"))

    def filled(self, weight_vd: Tensor) -> int:
        """Rows of the vocabulary in this rank's piece."""
        return min(max(len(weight_vd) - self.column.index * self.piece, 0), self.piece)

    def places(self, targets_n: Tensor, filled: int) -> Tensor:
        """Place of each target within this rank's piece, or -1 where another rank has it."""
        places_n = targets_n - (self.row.index * self.part + self.column.index * self.piece)
        return torch.where(places_n < filled, places_n, -1)


def softmax_over(axis: Axis, logits_nv: Tensor, places_n: Tensor, kept_n: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy, and its gradient for this rank's logits, of a softmax over the pieces of all ranks of `axis`.

    `places_n` is the target's place in this rank's piece, or negative where the target is another rank's. Overwrites the logits.
    """
    top_n = axis.all_reduce(logits_nv.amax(1), "softmax", maximum=True)
    index_n1 = places_n.clamp_min(0).unsqueeze(1)
    here_n = places_n >= 0
    shifted_nv = logits_nv.sub_(top_n.unsqueeze(1))
    target_n = torch.where(here_n, shifted_nv.gather(1, index_n1).squeeze(1), 0.0)
    exponential_nv = shifted_nv.exp_()
    sums_2n = axis.all_reduce(torch.stack((exponential_nv.sum(1), target_n)), "softmax")
    loss = ((sums_2n[0].log() - sums_2n[1]) * kept_n).sum()
    gradient_nv = exponential_nv.div_(sums_2n[0].unsqueeze(1))
    gradient_nv.scatter_add_(1, index_n1, -here_n.unsqueeze(1).to(gradient_nv.dtype))
    return loss, gradient_nv.mul_(kept_n.unsqueeze(1))


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_nd: Tensor, head_vd: Tensor, targets_n: Tensor, chunk: int, grid: GridLoss, learn: bool) -> Tensor:
        """The loss, and by the way its gradients."""
        weight_vd = head_vd.to(hidden_nd.dtype)
        grad_hidden, grad_head = torch.empty_like(hidden_nd), torch.zeros_like(head_vd)
        losses = []
        for hidden, targets, out in zip(hidden_nd.split(chunk), targets_n.split(chunk), grad_hidden.split(chunk)):
            places = grid.places(targets, grid.filled(weight_vd))
            loss, grad_nv = softmax_over(grid.both, grid.logits(hidden, weight_vd), places, targets != IGNORE)
            losses.append(loss)
            if not learn:
                continue
            grad_nv = grid.column.all_gather(grad_nv.to(hidden.dtype), 1, "head")[:, : len(weight_vd)]
            torch.mm(grad_nv, weight_vd, out=out)
            add_product(grad_head, grad_nv.t(), hidden)
        ctx.gradients = (grad_hidden, grad_head)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        """Hand out the gradients, once."""
        grad_hidden, grad_head = ctx.gradients
        ctx.gradients = None  # scaled in place: the head's gradient may be gigabytes
        return grad_hidden.mul_(factor), grad_head.mul_(factor), None, None, None, None
