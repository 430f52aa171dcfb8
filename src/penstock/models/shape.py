"""Settling every derived number of a model, so that its section alone defines it.

A user writes `dim` and `heads`; the rest follows. The rules: as many key and value heads as query heads; a head is `dim / heads`
wide; SwiGLU is 8/3 of `dim` wide, which gives its three matrices the parameters of a plain 4x feed-forward's two (Shazeer,
arXiv 2002.05202); the vocabulary is the tokenizer's size. Widths are rounded up to multiples that matrix units like.
"""

from __future__ import annotations

from penstock.config import ModelSection, UserError

#: Vocabularies from this size on are rounded up to a multiple of 64; for smaller ones the padding costs more than it saves.
ROUND_VOCAB_FROM = 4096


def resolve_model(model: ModelSection, vocab: int) -> ModelSection:
    """Return `model` with every 0 that means "derive" filled in, for a tokenizer of `vocab` tokens.

    Raises `UserError` where the configured `model.vocab` is smaller than the tokenizer. `moe.dim` stays 0 in a dense model.
    """
    ffn_dim = model.ffn_dim or round_up(-(-8 * model.dim // 3), 32)
    moe = model.moe
    if moe.experts and not moe.dim:
        moe = moe.model_copy(update={"dim": round_up(-(-ffn_dim // (moe.active + moe.shared)), 8)})
    return model.model_copy(
        update={
            "kv_heads": model.kv_heads or model.heads,
            "head_dim": model.head_dim or model.dim // model.heads,
            "ffn_dim": ffn_dim,
            "vocab": _vocab(model.vocab, vocab),
            "moe": moe,
        }
    )


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


def _vocab(configured: int, tokenizer_size: int) -> int:
    if configured == 0:
        return tokenizer_size if tokenizer_size < ROUND_VOCAB_FROM else round_up(tokenizer_size, 64)
    if configured < tokenizer_size:
        raise UserError(
            f"model.vocab = {configured} is smaller than the tokenizer's {tokenizer_size} tokens; set it to 0 or at least {tokenizer_size}"
        )
    return configured
