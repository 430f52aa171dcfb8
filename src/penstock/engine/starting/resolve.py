"""Settling every "auto" once, when a run is made, so that the run's own config alone reproduces it.

What depends on the corpus (vocabulary, split) and on the machine's kind (number format, compilation, chunk of the loss)
is decided here, before ranks start, and written into `config.toml`. What only says *where* to run (device, threads,
number of replicas) stays open, so a run made on one host resumes on another.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from penstock.comm import choose_device
from penstock.config import Config, UserError, with_values
from penstock.data import TokenCorpus, corpus_path, load_tokenizer, parse_skip
from penstock.models import flops_per_token, resolve_model
from penstock.monitor.alerts import parse_policy
from penstock.parallel import Layout, build_layout, check_layout

#: A CPU run compiles when it is expected to last longer than this eagerly; compiling takes 20 to 60 s there.
WORTH_COMPILING_S = 180.0
#: Sustained CPU speed assumed for that estimate, FLOP/s a core.
CPU_FLOPS_PER_CORE = 2e10
LOSS_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}


def resolve(config: Config, corpus: TokenCorpus, cores: int) -> Config:
    """Return `config` with the corpus's path and split, the model's shape, and the machine's choices settled.

    Raises `UserError` where the vocabulary does not fit the tokenizer.
    """
    model = resolve_model(config.model, corpus.tokenizer.vocab_size)
    values = {"model": model.model_dump(by_alias=True), "data.path": corpus_path(config.data), "data.split": corpus.split}
    if config.data.tokenizer not in ("bpe", "bytes", "chars"):
        values["data.tokenizer"] = str(Path(config.data.tokenizer).resolve())
    return settle_machine(with_values(config, values), cores)


def outline(config: Config) -> Config:
    """`config` settled for this machine without its corpus, to plan with: a vocabulary that only the corpus tells is guessed.

    A trained BPE has `data.vocab` tokens, bytes are 257, a tokenizer's file tells; characters are taken to be 128.
    """
    kind, sizes = config.data.tokenizer, {"bpe": config.data.vocab, "bytes": 257, "chars": 128}
    vocab = sizes[kind] if kind in sizes else load_tokenizer(kind).vocab_size
    return settle_machine(with_values(config, {"model": resolve_model(config.model, vocab).model_dump(by_alias=True)}), cores())


def settle_machine(config: Config, cores: int) -> Config:
    """Settle number format, chunk of the loss and compilation for this machine; the model's shape must be resolved."""
    device = choose_device(config.run.device).type
    config = with_values(
        config,
        {
            "precision.compute": _compute_format(config, device),
            "train.loss_chunk": config.train.loss_chunk or max(1, LOSS_CHUNK_BYTES[device] // (4 * config.model.vocab)),
        },
    )
    return with_values(config, {"compile.enabled": _compile(config, device, cores)})


def check_world(config: Config, ranks: int) -> Layout:
    """The layout on so many ranks; refuses one that the model or the batch does not divide into, and what is no policy or list of samples."""
    parse_policy(config.alerts.act)
    parse_skip(config.data.skip)
    layout = build_layout(config, ranks)
    check_layout(config, layout)
    return layout


def check_ranks(nproc: int, device: str, cores: int, asked: str = "--nproc") -> None:
    """Refuse ranks above what the host has: one a GPU, or four a CPU core (at least eight); `asked` is where the number was given."""
    if nproc < 1:
        raise UserError(f"{asked} {nproc}: start at least one rank")
    gpus = torch.cuda.device_count()
    if choose_device(device).type == "cuda" and nproc > gpus:
        raise UserError(f"{asked} {nproc} is above the host's {gpus} GPUs; start at most {gpus}, or use --set run.device=cpu")
    limit = max(8, 4 * cores)
    if choose_device(device).type == "cpu" and nproc > limit:
        raise UserError(f"{asked} {nproc} is above what this host's {cores} CPU cores carry; start at most {limit} ranks")


def _compute_format(config: Config, device: str) -> str:
    if config.precision.compute != "auto":
        return config.precision.compute
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def _compile(config: Config, device: str, cores: int) -> str:
    layout = config.layout
    if config.compile.enabled != "auto":
        return config.compile.enabled
    if max(layout.tensor, layout.context, layout.expert) > 1 or config.balance.data == "measured":
        return "off"
    tokens = config.train.steps * config.batch.global_ * config.model.context
    seconds = tokens * flops_per_token(config.model) / (CPU_FLOPS_PER_CORE * cores)
    return "on" if device == "cuda" or seconds > WORTH_COMPILING_S else "off"


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
