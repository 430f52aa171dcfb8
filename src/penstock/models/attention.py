"""Grouped-query attention with rotary positions (Ainslie et al., arXiv 2305.13245), optionally with normalised queries and keys.

h query heads share g key-value heads in equal groups. With `qk_norm`, RMSNorm per head on queries and keys before they are turned
(Qwen3, arXiv 2505.09388) bounds the attention logits. The scores are computed by torch's fused kernels: flash attention
on the causal path, FlexAttention for a block mask, the masked kernel for a dense one; none holds the t x t matrix.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from penstock.config import ModelSection
from penstock.models.cache import LayerCache
from penstock.models.layers import Linear, RMSNorm
from penstock.models.mask import Mask
from penstock.models.rope import rotate


class AttentionCore(nn.Module):
    """Softmax attention of queries (b, h, t, k) to keys and values (b, g, s, k), h a multiple of g; a module, so that it can be wrapped."""

    def forward(self, q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, mask: Mask) -> Tensor:
        """Attend under `mask`, or causally without one; (b, h, t, k)."""
        grouped = q_bhtk.shape[1] != k_bgsk.shape[1]
        if mask is None or isinstance(mask, Tensor):
            return F.scaled_dot_product_attention(q_bhtk, k_bgsk, v_bgsk, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        from penstock.models.flex import flex_attend  # imported by whoever made the mask

        return flex_attend(q_bhtk, k_bgsk, v_bgsk, mask, grouped)


class Attention(nn.Module):
    """One attention layer of `model`, with separate projections so that each can be sharded on its own."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.head_dim = model.head_dim
        self.wq: nn.Module = Linear(model.dim, model.heads * model.head_dim)
        self.wk: nn.Module = Linear(model.dim, model.kv_heads * model.head_dim)
        self.wv: nn.Module = Linear(model.dim, model.kv_heads * model.head_dim)
        self.wo: nn.Module = Linear(model.heads * model.head_dim, model.dim)
        self.q_norm = RMSNorm(model.head_dim, model.norm_eps) if model.qk_norm else None
        self.k_norm = RMSNorm(model.head_dim, model.norm_eps) if model.qk_norm else None
        self.core: nn.Module = AttentionCore()

    def forward(self, x_btd: Tensor, cos_tk: Tensor, sin_tk: Tensor, mask: Mask, cache: LayerCache | None = None) -> Tensor:
        """Attend within (b, t, d), or to `cache` and the new tokens; without a mask, causally."""
        b, t, _ = x_btd.shape
        q_bthk, k_btgk, v_btgk = (y.view(b, t, -1, self.head_dim) for y in self.project(x_btd))
        if self.q_norm is not None and self.k_norm is not None:
            q_bthk, k_btgk = self.q_norm(q_bthk), self.k_norm(k_btgk)
        q_bhtk = rotate(q_bthk, cos_tk, sin_tk).transpose(1, 2)
        k_bgtk = rotate(k_btgk, cos_tk, sin_tk).transpose(1, 2)
        v_bgtk = v_btgk.transpose(1, 2)
        if cache is not None:
            k_bgtk, v_bgtk = cache.extend(k_bgtk, v_bgtk)
        y_bhtk = self.core(q_bhtk, k_bgtk, v_bgtk, mask)
        return self.wo(y_bhtk.transpose(1, 2).reshape(b, t, -1))

    def project(self, x_btd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of (b, t, d), heads side by side; whoever fetches `x_btd` from other ranks does it here, once for the three."""
        return self.wq(x_btd), self.wk(x_btd), self.wv(x_btd)
