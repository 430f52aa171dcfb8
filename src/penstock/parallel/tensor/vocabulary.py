"""A vocabulary cut over ranks: looking tokens up in one's own rows, and the cross-entropy of logits of which each rank has some.

Megatron's vocabulary-parallel embedding and loss (Shoeybi et al., arXiv 1909.08053, section 3). With z the logits of a token, the maximum m is
taken over the axis first, then Σ exp(z - m) and the target's z - m are summed over it in one all-reduce, so that no rank ever has a whole row:

    loss = log Σ exp(z - m) - (z[target] - m)        gradient = exp(z - m) / Σ - onehot(target), for the logits that a rank has

Cost: three numbers a token, in float32 at least, are all-reduced over the axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.comm import Axis
from penstock.models.layers import wide
from penstock.models.loss import IGNORE


def look_up(tokens_bt: Tensor, rows_vd: Tensor, first: int) -> Tensor:
    """Vectors (b, t, d) of the tokens `first` to `first + v - 1`, whose rows these are; zero for all others. The sum over ranks is the embedding."""
    index_bt = tokens_bt - first
    absent = (index_bt < 0) | (index_bt >= len(rows_vd))
    return F.embedding(index_bt.masked_fill(absent, 0), rows_vd).masked_fill(absent.unsqueeze(-1), 0.0)


def split_softmax_gradient(logits_nv: Tensor, targets_n: Tensor, axis: Axis, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy, and the gradient of this rank's logits (n, v) in their format; may overwrite the logits.

    The logits are of the tokens from `first` on; only the first `count` are of the vocabulary, the rest is padding and gets no weight.
    The loss is the same on all ranks of the axis; the gradient is that of one such loss.
    """
    z_nv = wide(logits_nv)
    z_nv[:, count:] = float("-inf")
    z_nv.sub_(axis.all_reduce(z_nv.amax(1), "loss", maximum=True).unsqueeze(1))
    index = targets_n - first
    here = (index >= 0) & (index < count)
    index = torch.where(here, index, 0).unsqueeze(1)
    of_target_n = torch.where(here, z_nv.gather(1, index).squeeze(1), 0.0)
    gradient = z_nv.exp_()
    sum_n, of_target_n = axis.all_reduce(torch.stack((gradient.sum(1), of_target_n)), "loss")
    kept = targets_n != IGNORE
    loss = torch.where(kept, sum_n.log() - of_target_n, 0.0).sum()
    gradient.div_(sum_n.unsqueeze(1)).scatter_add_(1, index, -here.to(gradient.dtype).unsqueeze(1))
    return loss, gradient.mul_(kept.unsqueeze(1)).to(logits_nv.dtype)
