"""Who may look at whom: causal, optionally within a sliding window, optionally within one document.

Plain causal attention needs no mask at all (the kernels know it). A window or documents need one, built once per forward pass and
shared by all layers: on CUDA a FlexAttention block mask, whose empty blocks are skipped (He et al., PyTorch blog 2024; cost in
proportion to the blocks that are not empty); elsewhere a dense boolean matrix of t² entries a sequence, which is right for the
short contexts that a CPU trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

#: None is plain causal; a tensor is dense, true where a query may look.
Mask: TypeAlias = "Tensor | BlockMask | None"


def training_mask(batch_tokens: tuple[int, int], window: int, documents_bt: Tensor | None, device: torch.device) -> Mask:
    """The mask of whole sequences of shape `batch_tokens` (b, t); None where plain causal attention is meant."""
    tokens = batch_tokens[1]
    window = window if 0 < window < tokens else 0
    if not window and documents_bt is None:
        return None
    if device.type == "cuda":
        return _block_mask(batch_tokens, window, documents_bt, device)
    return dense_mask(tokens, tokens, window, documents_bt, device)


def dense_mask(queries: int, keys: int, window: int, documents_bt: Tensor | None, device: torch.device) -> Tensor:
    """Boolean (1 or b, 1, queries, keys), true where a query may look; the last query sits at the last key."""
    key_s = torch.arange(keys, device=device)
    return dense_mask_at(key_s[keys - queries :], key_s, window, documents_bt, documents_bt)


def dense_mask_at(query_t: Tensor, key_s: Tensor, window: int, query_documents_bt: Tensor | None, key_documents_bs: Tensor | None) -> Tensor:
    """Boolean (1 or b, 1, t, s), true where the query at position `query_t` may look at the key at `key_s`."""
    distance_ts = query_t[:, None] - key_s[None, :]
    seen = distance_ts >= 0
    if window:
        seen &= distance_ts < window
    if query_documents_bt is None or key_documents_bs is None:
        return seen[None, None]
    return (seen & (query_documents_bt[:, :, None] == key_documents_bs[:, None, :]))[:, None]


def block_mask_at(query_t: Tensor, key_s: Tensor, window: int, query_documents_bt: Tensor | None, key_documents_bs: Tensor | None) -> BlockMask:
    """`dense_mask_at` for CUDA: FlexAttention's block mask."""
    from penstock.models.flex import block_mask  # only where one is made (`flex.py`)

    def seen(b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query_t[query] - key_s[key]
        allowed = distance >= 0
        if window:
            allowed = allowed & (distance < window)
        if query_documents_bt is None or key_documents_bs is None:
            return allowed
        return allowed & (query_documents_bt[b, query] == key_documents_bs[b, key])

    batch = None if query_documents_bt is None else len(query_documents_bt)
    return block_mask(seen, batch, len(query_t), len(key_s), query_t.device)


def _block_mask(batch_tokens: tuple[int, int], window: int, documents_bt: Tensor | None, device: torch.device) -> BlockMask:
    from penstock.models.flex import block_mask

    def seen(b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = query >= key
        if window:
            allowed = allowed & (query - key < window)
        return allowed if documents_bt is None else allowed & (documents_bt[b, query] == documents_bt[b, key])

    batch, tokens = batch_tokens
    return block_mask(seen, None if documents_bt is None else batch, tokens, tokens, device)
