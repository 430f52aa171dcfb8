"""What attention looks at, from a sample: its entropy and its largest logit.

The fused kernels never have the t × t scores, so those of `QUERIES` positions of the first sequence are computed once more, for all heads, in
float32 at least, under the same mask: z = q·k / √k. Reported are

    attention_entropy/layer.03            mean over queries and heads of -Σ p log p, nats
    attention_entropy/layer.03.lowest     the least head's mean: 0 is a head that looks at one token
    logit_max/layer.03                    the largest z that is not masked

Entropy that collapses to 0 while logits grow beyond a hundred is how attention diverges (Zhai et al., arXiv 2303.06296; Wortsman et al., arXiv
2309.14322). Cost: QUERIES · t · k products a head, a few thousandths of a layer; hence with the costlier probes. When not to use it: to see single
tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.models.layers import wide
from penstock.models.mask import Mask

#: Positions of the sequence whose attention is looked at.
QUERIES = 8


@torch.no_grad()
def look_at_attention(q_bhtk: Tensor, k_bgsk: Tensor, mask: Mask) -> Tensor:
    """Mean entropy, least head's mean entropy, and largest logit of the first of the sequences; h is a multiple of g."""
    q_htk, k_gsk = q_bhtk[0].detach(), k_bgsk[0].detach()
    tokens, keys = q_htk.shape[1], k_gsk.shape[1]
    at_n = torch.linspace(tokens // QUERIES, tokens - 1, min(QUERIES, tokens), device=q_htk.device).long()
    q_gnk = wide(q_htk[:, at_n]).reshape(len(k_gsk), -1, q_htk.shape[-1])  # the heads of a group lie one behind the other
    z_gns = torch.bmm(q_gnk, wide(k_gsk).transpose(1, 2)) * q_htk.shape[-1] ** -0.5
    z_hns = z_gns.view(len(q_htk), -1, keys)
    seen_ns = _seen(mask, at_n, keys)
    z_hns = z_hns.masked_fill(~seen_ns, float("-inf"))
    log_p = torch.log_softmax(z_hns, dim=-1)
    entropy_h = -(log_p.exp() * log_p.masked_fill(~seen_ns, 0.0)).sum(-1).mean(-1)
    return torch.stack((entropy_h.mean(), entropy_h.min(), z_hns.amax()))


def _seen(mask: Mask, at_n: Tensor, keys: int) -> Tensor:
    """What those queries of the first sequence may look at, bool (n, s)."""
    if isinstance(mask, Tensor):
        return mask[0, 0, at_n]
    key_s = torch.arange(keys, device=at_n.device)
    if mask is None:
        return key_s[None, :] <= at_n[:, None]
    zero = at_n.new_zeros(())
    return mask.mask_mod(zero, zero, at_n[:, None], key_s[None, :])
