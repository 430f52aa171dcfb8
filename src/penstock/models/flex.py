"""FlexAttention (He et al., PyTorch blog 2024), compiled when it is first used: importing the compiler takes longer than all else a command imports.

From torch 2.14 on FlexAttention itself imports sympy, so this file is imported only where a block mask is made. Without the compiler it would hold
the t x t matrix. Inside a compiled block both functions are taken as they are, into the block's own graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

#: Of (sequence, head, query, key): whether the query may look at the key.
Seen = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_attend(q_bhtk: Tensor, k_bgsk: Tensor, v_bgsk: Tensor, mask: BlockMask, grouped: bool) -> Tensor:
    """Attention of queries (b, h, t, k) to keys and values (b, g, s, k) under a block mask; (b, h, t, k)."""
    attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled(flex_attention)
    return cast(Tensor, attend(q_bhtk, k_bgsk, v_bgsk, block_mask=mask, enable_gqa=grouped))


def block_mask(seen: Seen, batch: int | None, queries: int, keys: int, device: torch.device) -> BlockMask:
    """The block mask of `seen`, the same for all heads, and without `batch` for all sequences."""
    build: Any = create_block_mask if torch.compiler.is_compiling() else _compiled(create_block_mask)
    return cast(BlockMask, build(seen, batch, None, queries, keys, device=device))


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)
