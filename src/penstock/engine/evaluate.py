"""Validation loss, and samples of what the model writes.

The validation loss is the mean cross-entropy in nats per token over fixed, non-overlapping windows of the held-out
stream; every window is scored once, on whichever rank has it, and the sums are added over ranks. With averaged
weights (`optim.ema`) it is theirs. An incomplete batch is filled up with a window whose targets are masked, so every
batch has one shape and nothing compiles anew.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch

from penstock.config import Config
from penstock.data import Batch, TokenCorpus, Tokenizer, ValidationPlan, validation_plan
from penstock.data.batches import IGNORED
from penstock.engine.exchange import consensus
from penstock.engine.state import whole_model
from penstock.engine.step import device_batch
from penstock.models import Decoder, generate, load_decoder

if TYPE_CHECKING:
    from penstock.engine.build import Parts


def averaged_weights(parts: Parts) -> AbstractContextManager[object]:
    """Evaluate with the averaged weights where the run keeps them, and with those that all nodes agree on."""
    return parts.average.swapped_in() if parts.average is not None else consensus(parts)


def validation_windows(config: Config, corpus: TokenCorpus) -> ValidationPlan:
    """The windows of the held-out text that are scored. Raises `UserError` if it is shorter than one of them."""
    return validation_plan(corpus.validation, config.model.context, config.eval.sequences, config.data.document_mask)


def validation_loss(parts: Parts) -> float:
    """Mean cross-entropy over the validation windows, nats per token; every rank takes part."""
    plan = validation_windows(parts.config, parts.corpus)
    total, tokens = score_windows(parts, plan)
    loss_sum, n_tokens = parts.world.sum_(torch.tensor([total, tokens], dtype=torch.float64, device=parts.world.device), "eval").tolist()
    return loss_sum / n_tokens


@torch.no_grad()
def score_windows(parts: Parts, plan: ValidationPlan) -> tuple[float, int]:
    """Summed cross-entropy and number of target tokens of this rank's windows; all ranks make as many passes, since passes may exchange."""
    size, axes = parts.config.eval.micro or parts.micro, parts.layout.sequence_axes
    ranks, place = parts.layout.size(*axes), parts.layout.index(parts.world.rank, axes)
    total, tokens, ids = 0.0, 0, np.arange(plan.count)[place::ranks]
    parts.decoder.eval()
    batches = (parts.own_tokens(window_batch(plan, ids[start : start + size], size)) for start in range(0, -(-plan.count // ranks), size))
    if parts.pipeline is None:
        for batch in batches:
            total += parts.loss(batch).item()
            tokens += int((batch.targets_bt >= 0).sum())
    else:
        whole = list(batches)
        losses = parts.pipeline.score([device_batch(batch, parts.world.device) for batch in whole])
        if losses:
            total = torch.stack(losses).double().sum().item()
            tokens = sum(int((batch.targets_bt >= 0).sum()) for batch in whole)
    parts.decoder.train()
    parts.laid.sharder.reshard()
    return total, tokens


def window_batch(plan: ValidationPlan, ids: np.ndarray, size: int) -> Batch:
    """The windows `ids` as a batch of `size` sequences; missing ones are the first window with all targets masked."""
    batch = plan.fetch(np.concatenate([ids, np.zeros(size - len(ids), dtype=np.int64)]))
    batch.targets_bt[len(ids) :] = IGNORED
    return batch


def sample_text(parts: Parts, prompt: str, step: int) -> str:
    """Text the model writes after `prompt`, on the lead rank; a pure function of weights, seed and step. Every rank takes part."""
    settings, tokenizer, seed = parts.config.eval, parts.corpus.tokenizer, parts.config.run.seed + step
    decoder = whole_decoder(parts)
    if decoder is None:
        return ""
    return continue_text(decoder, tokenizer, prompt, settings.sample_tokens, settings.temperature, settings.top_k, seed, parts.dtype)


def whole_decoder(parts: Parts) -> Decoder | None:
    """The model as one plain process has it, on the lead rank; None on the others, which must take part.

    Gathered where the layout cuts it: on the GPU if it has room for a copy in the format of computation, else on the CPU.
    """
    if parts.layout.size("pipeline", "shard", "context", "tensor", "expert") == 1:
        return parts.decoder if parts.world.is_lead else None
    state = whole_model(parts.laid)
    if not parts.world.is_lead:
        return None
    device, room = parts.world.device, sum(tensor.numel() for tensor in state.values()) * parts.dtype.itemsize
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 2 * room:
        device = torch.device("cpu")
    return load_decoder(parts.config.model, state, device, parts.dtype)


def continue_text(
    decoder: Decoder, tokenizer: Tokenizer, prompt: str, max_new: int, temperature: float, top_k: int, seed: int, dtype: torch.dtype
) -> str:
    """Sample a continuation of `prompt` and return it as text; an empty prompt starts a document."""
    start = list(tokenizer.encode(prompt)) or [tokenizer.end_id if tokenizer.end_id is not None else 0]
    generator = torch.Generator().manual_seed(seed)
    decoder.eval()
    tokens = generate(
        decoder, start, max_new=max_new, temperature=temperature, top_k=top_k, generator=generator, stop=tokenizer.end_id, dtype=dtype
    )
    decoder.train()
    return tokenizer.decode(tokens)
