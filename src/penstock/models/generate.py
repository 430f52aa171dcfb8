"""Writing text: sample one token after another from the model, reading each only once.

Keys and values of what was read are cached (`cache.py`). When the text reaches the context the model was trained for, its older half is
dropped and the rest read again at the first positions, so every token is predicted at a position that training has seen. Cost: one
forward pass of a single token each, and one of half a context for every half context written.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
from torch import Tensor

from penstock.models.cache import KVCache
from penstock.models.decoder import Decoder


@torch.no_grad()
def generate(
    decoder: Decoder,
    tokens: list[int],
    *,
    max_new: int,
    temperature: float,
    top_k: int,
    generator: torch.Generator,
    stop: int | None,
    dtype: torch.dtype = torch.float32,
) -> list[int]:
    """Return up to `max_new` tokens that follow `tokens` (at least one), computed in `dtype`; `stop` ends the text and is not returned.

    Temperature 0 takes the likeliest token; `top_k` > 0 samples among the k likeliest. Draws come from `generator`, on its device.
    """
    device, context = decoder.head_weight_vd.device, decoder.model.context
    text, written = list(tokens), 0
    unread, cache = text[-context:], KVCache(decoder.model.sliding_window)
    compiles = "torch._dynamo" in sys.modules  # or there is nothing to hold back, and to import the compiler for
    with torch.compiler.set_stance("force_eager") if compiles else nullcontext():  # every length would compile anew
        while written < max_new:
            if cache.length + len(unread) > context:
                unread, cache = text[-max(context // 2, 1) :], KVCache(decoder.model.sliding_window)
            hidden_btd = decoder(torch.tensor([unread], device=device), cache=cache, dtype=dtype)
            token = sample(decoder.logits(hidden_btd[0, -1]).float(), temperature, top_k, generator)
            if token == stop:
                break
            text.append(token)
            unread, written = [token], written + 1
    return text[len(tokens) :]


def sample(logits_v: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """Draw one token from float32 logits (v,)."""
    if temperature == 0:
        return int(logits_v.argmax())
    logits_v = logits_v.to(generator.device) / temperature
    if top_k and top_k < len(logits_v):
        logits_v, candidates = logits_v.topk(top_k)
        return int(candidates[torch.multinomial(logits_v.softmax(-1), 1, generator=generator)])
    return int(torch.multinomial(logits_v.softmax(-1), 1, generator=generator))
