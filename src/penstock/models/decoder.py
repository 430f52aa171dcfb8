"""The decoder: embedding, blocks, final norm, head. Knows nothing of parallelism, compilation or recomputation.

A block is x + attention(norm(x)), then x + ffn(norm(x)), where the feed-forward is SwiGLU or a mixture of experts. Blocks sit in
a dictionary under their layer number, so that a pipeline stage that holds only some keeps their names, and each takes and returns
plain tensors, so that it can be compiled, sharded or recomputed on its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.config import ModelSection
from penstock.models.attention import Attention
from penstock.models.cache import KVCache, LayerCache
from penstock.models.layers import Embedding, FeedForward, Linear, RMSNorm
from penstock.models.loss import Kernel, TokenLoss, lm_loss
from penstock.models.mask import Mask, dense_mask
from penstock.models.moe import MixtureOfExperts
from penstock.models.sequence import Context, WholeSequence


class Block(nn.Module):
    """One layer of the decoder; `ffn` is dense or a mixture of experts."""

    def __init__(self, model: ModelSection, layer: int) -> None:
        super().__init__()
        self.attention_norm: nn.Module = RMSNorm(model.dim, model.norm_eps)
        self.attention = Attention(model)
        self.ffn_norm: nn.Module = RMSNorm(model.dim, model.norm_eps)
        self.ffn: nn.Module = MixtureOfExperts(model) if has_experts(model, layer) else FeedForward(model.dim, model.ffn_dim)

    def forward(self, x_btd: Tensor, cos_tk: Tensor, sin_tk: Tensor, mask: Mask, cache: LayerCache | None = None) -> Tensor:
        """Map (b, t, d) to (b, t, d); the other arguments are `WholeSequence.context`'s."""
        x_btd = x_btd + self.attention(self.attention_norm(x_btd), cos_tk, sin_tk, mask, cache)
        return x_btd + self.ffn(self.ffn_norm(x_btd))


class Decoder(nn.Module):
    """A causal language model of a resolved `ModelSection`; float32 parameters, any compute format."""

    def __init__(self, model: ModelSection) -> None:
        """Allocate the model with its parameters unset (`build_decoder` draws them); `model` must be resolved."""
        super().__init__()
        assert model.vocab and model.kv_heads and model.head_dim and model.ffn_dim, "resolve_model comes first"
        self.model = model
        self.embedding: nn.Module = Embedding(model.vocab, model.dim)
        self.blocks = nn.ModuleDict({str(layer): Block(model, layer) for layer in range(model.layers)})
        self.norm: nn.Module = RMSNorm(model.dim, model.norm_eps)
        self.head = None if model.tie_embeddings else Linear(model.dim, model.vocab)
        self.sequence = WholeSequence(model)
        self.token_loss: TokenLoss = lm_loss

    def forward(
        self, tokens_bt: Tensor, *, documents_bt: Tensor | None = None, cache: KVCache | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Hidden states (b, t, d) in `dtype`, after the final norm and before the head.

        `documents_bt` numbers the document of each token; tokens then attend within their own. With a `cache`, `tokens_bt`
        continue the tokens it has read, which extends it.
        """
        if cache is None:
            context = self.sequence.context(tokens_bt, documents_bt)
            return self.norm(self.stage(self.blocks, context, tokens_bt=tokens_bt, dtype=dtype))
        x_btd = self.embedding(tokens_bt).to(dtype)
        cached = self._cached_context(x_btd, cache)
        for name, block in self.blocks.items():
            x_btd = block(x_btd, *cached, cache.layer(name))
        cache.length += tokens_bt.shape[1]
        return self.norm(x_btd)

    def loss(
        self,
        tokens_bt: Tensor,
        targets_bt: Tensor,
        *,
        documents_bt: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        chunk_tokens: int,
        kernel: Kernel | None = None,
    ) -> Tensor:
        """Summed cross-entropy of `targets_bt` (-100: none) in nats, float32 (float64 for float64); see `lm_loss`."""
        context = self.sequence.context(tokens_bt, documents_bt)
        x_btd = self.stage(self.blocks, context, tokens_bt=tokens_bt, dtype=dtype)
        return self.stage((), context, x_btd=x_btd, targets_bt=targets_bt, chunk_tokens=chunk_tokens, kernel=kernel)

    def stage(
        self,
        layers: Iterable[str],
        context: Context,
        *,
        x_btd: Tensor | None = None,
        tokens_bt: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        targets_bt: Tensor | None = None,
        chunk_tokens: int = 0,
        kernel: Kernel | None = None,
    ) -> Tensor:
        """A piece of the model: some of its layers, on vectors (b, t, d) or on `tokens_bt`; returns vectors, or with `targets_bt` their `loss`.

        `context` is what `self.sequence` says of these sequences, the same for all pieces.
        """
        if x_btd is None:
            x_btd = self.embedding(tokens_bt).to(dtype)
        for name in layers:
            x_btd = self.blocks[name](x_btd, *context)
        if targets_bt is None:
            return x_btd
        return self.token_loss(self.norm(x_btd), self.head_weight_vd, targets_bt, chunk_tokens=chunk_tokens, kernel=kernel)

    @property
    def head_weight_vd(self) -> Tensor:
        """The output matrix (vocab, d): the head's own, or the embedding's where they are tied."""
        return cast(Tensor, self.embedding.weight) if self.head is None else self.head.weight

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """Scores of every token of the vocabulary, (b, t, v), in the format of `hidden_btd`."""
        return F.linear(hidden_btd, self.head_weight_vd.to(hidden_btd.dtype))

    def _cached_context(self, x_btd: Tensor, cache: KVCache) -> tuple[Tensor, Tensor, Tensor]:
        t = x_btd.shape[1]
        cos_tk, sin_tk = self.sequence.rotary.angles(cache.length, t, x_btd.device)
        return cos_tk, sin_tk, dense_mask(t, cache.kept + t, self.model.sliding_window, None, x_btd.device)


def blocks_of(decoder: Decoder) -> dict[str, Block]:
    """The decoder's blocks by layer number."""
    return {name: cast(Block, block) for name, block in decoder.blocks.items()}


def has_experts(model: ModelSection, layer: int) -> bool:
    """Whether block `layer` is a mixture of experts."""
    return model.moe.experts > 0 and layer >= model.moe.first_dense
