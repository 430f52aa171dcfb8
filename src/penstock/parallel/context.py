"""Context parallelism: every sequence cut over ranks in balanced causal halves, keys and values gathered for attention.

Under a causal mask the last part of a sequence has the most to look at. So each sequence is cut into 2c pieces and rank r of c takes pieces r and
2c - 1 - r: all ranks then have the same work (the head-tail order of Llama 3's training, arXiv 2407.21783, section 3.3.2, whose all-gather of
keys and values this is too: with grouped queries they are a fraction of the activations, and one exchange hides no worse than a ring's c).

    attention: gather keys and values over context (backward: reduce-scatter their gradients), own queries only.
    Everything else works on a rank's own tokens.

Elements one rank sends in a layer, forward and backward together, for its n/c tokens' key-value width g: 2 · 2 n g (c - 1)/c. Memory: the keys and
values of whole sequences for one layer at a time. When not to use it: where sequences fit, data parallelism exchanges less.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from penstock.comm import Axis, gather
from penstock.models import Decoder
from penstock.models.decoder import blocks_of
from penstock.models.mask import Mask, block_mask_at, dense_mask_at
from penstock.models.sequence import WholeSequence


def context_positions(tokens: int, ranks: int, index: int) -> np.ndarray:
    """Positions of a sequence of `tokens` that rank `index` of `ranks` has, int64; `tokens` must be a multiple of 2 `ranks`."""
    pieces = np.arange(tokens).reshape(2 * ranks, -1)
    return np.concatenate((pieces[index], pieces[2 * ranks - 1 - index]))


def split_context(decoder: Decoder, axis: Axis) -> None:
    """Let `decoder` work on this rank's part of every sequence, in place."""
    decoder.sequence = SplitSequence(decoder.sequence, axis)
    for block in blocks_of(decoder).values():
        block.attention.core = ContextCore(block.attention.core, axis)


class SplitSequence(WholeSequence):
    """Sequences of which this rank has two pieces, and sees the keys of all ranks in the order of the ranks."""

    def __init__(self, whole: WholeSequence, axis: Axis) -> None:
        super().__init__(whole.model)
        self.axis = axis

    def context(self, tokens_bt: Tensor, documents_bt: Tensor | None = None) -> tuple[Tensor, Tensor, Mask]:
        """Cosines and sines of this rank's positions, and the mask of its queries against all keys."""
        tokens, device = tokens_bt.shape[1] * self.axis.size, tokens_bt.device
        parts = [torch.from_numpy(context_positions(tokens, self.axis.size, index)) for index in range(self.axis.size)]
        query_t, key_s = parts[self.axis.index].to(device), torch.cat(parts).to(device)
        cos_sk, sin_sk = self.rotary.angles(0, tokens, device)
        everyones = None if documents_bt is None else self.axis.all_gather(documents_bt, 1, "documents")
        window = self.model.sliding_window if self.model.sliding_window < tokens else 0
        build = block_mask_at if device.type == "cuda" else dense_mask_at
        return cos_sk[query_t], sin_sk[query_t], build(query_t, key_s, window, documents_bt, everyones)


class ContextCore(nn.Module):
    """Attention of a rank's own queries to the keys and values of all ranks."""

    def __init__(self, core: nn.Module, axis: Axis) -> None:
        super().__init__()
        self.core, self.axis = core, axis

    def forward(self, q_bhtk: Tensor, k_bgtk: Tensor, v_bgtk: Tensor, mask: Mask) -> Tensor:
        """Attend from (b, h, t/c, k) to (b, g, t/c, k) of every rank under a mask of (t/c, t)."""
        k_bgsk, v_bgsk = gather(torch.stack((k_bgtk, v_bgtk)), self.axis, 3, "attention").unbind()
        return self.core(q_bhtk, k_bgsk, v_bgsk, mask)
