"""What the speed benchmarks compare: Penstock's own step on a real run, and a plain loop around transformers' Llama."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from penstock.comm import World, choose_device
from penstock.config import ModelSection, load_config
from penstock.engine.build import Parts, build
from penstock.engine.control import StopRequest
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import open_corpus, open_journal, use_threads
from penstock.engine.step import take_step


def penstock_parts(preset: str, sets: list[str], folder: Path) -> Parts:
    """Everything a rank trains with, built as `penstock train` builds it, in a run below `folder`."""
    quiet = ["eval.sample_tokens=0", "metrics.tensorboard=false", "metrics.dashboard=false"]
    config = load_config(preset, [f"data.cache_dir={folder / 'cache'}", *quiet, *sets])
    run = make_run(config, preset, "benchmark", folder / f"run-{len(os.listdir(folder))}", None)
    world = World(device=choose_device(run.config().run.device))
    use_threads(run.config())
    return build(run, run.config(), world, open_corpus(run, run.config()), StopRequest(supervised=True), open_journal(run, run.config(), world))


def penstock_step(parts: Parts) -> Callable[[], None]:
    """A function that takes the next optimizer step of `parts`."""

    def step() -> None:
        take_step(parts, parts.progress.step)
        parts.progress.step += 1
        parts.timer.take()

    return step


def llama_of(model: ModelSection) -> torch.nn.Module:
    """transformers' Llama of the same shape, with its own random weights and its fused attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab,
            hidden_size=model.dim,
            intermediate_size=model.ffn_dim,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            head_dim=model.head_dim,
            max_position_embeddings=model.context,
            rms_norm_eps=model.norm_eps,
            tie_word_embeddings=model.tie_embeddings,
            use_cache=False,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
    )


def plain_step(parts: Parts, micro: int) -> Callable[[], None]:
    """A function that takes a step of the plain loop: the same shape, batches, precision and AdamW settings, `micro` sequences at a time.

    bfloat16 is autocast around float32 weights, as the precision of `parts` is bfloat16 around float32 weights.
    """
    device, optim = parts.world.device, parts.config.optim
    model = llama_of(parts.config.model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=optim.lr, betas=(optim.beta1, optim.beta2), weight_decay=optim.weight_decay)
    position = 0

    def step() -> None:
        nonlocal position
        batch = parts.plan.fetch(parts.plan.sample_ids(position))
        position += 1
        tokens, targets = (torch.from_numpy(a).to(device) for a in (batch.tokens_bt, batch.targets_bt))
        optimizer.zero_grad()
        for x, y in zip(tokens.split(micro), targets.split(micro)):
            with torch.autocast(device.type, torch.bfloat16, enabled=parts.dtype == torch.bfloat16):
                logits = model(x).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())
            (loss * len(x) / len(tokens)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()

    return step
