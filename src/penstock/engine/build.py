"""Assembling what a rank trains with, from the run's resolved config, in one fixed and readable order.

model → compile → gradient exchange → optimizer → averaged weights → state. Each part is built by its own room from
its own config section; nothing here decides how a part works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from penstock.comm import GradientReducer, World
from penstock.config import Config
from penstock.data import Batch, BatchPlan, TokenCorpus
from penstock.engine.compile import LossFunction, compile_model, sequence_loss
from penstock.engine.control import StopRequest
from penstock.engine.journal import Journal
from penstock.engine.resolve import micro_batch
from penstock.engine.state import Progress, state_tensors
from penstock.engine.step import device_batch
from penstock.engine.timer import PhaseTimer
from penstock.models import Decoder, balance_experts, build_decoder
from penstock.optim import Optimizer, WeightAverage, build_optimizer
from penstock.store import Run, list_snapshots, load_snapshot

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Parts:
    """Everything one rank trains with."""

    run: Run
    config: Config
    world: World
    corpus: TokenCorpus
    plan: BatchPlan
    decoder: Decoder
    loss_of: LossFunction
    optimizer: Optimizer
    reducer: GradientReducer
    average: WeightAverage | None
    journal: Journal
    stop: StopRequest
    timer: PhaseTimer
    progress: Progress = field(default_factory=Progress)
    saved_step: int = -1

    @property
    def dtype(self) -> torch.dtype:
        """Format of activations and matrix products."""
        return DTYPES[self.config.precision.compute]

    @property
    def micro(self) -> int:
        """Sequences this rank computes at a time."""
        return micro_batch(self.config, self.world.size)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, each once."""
        return list(self.decoder.parameters())

    @property
    def nominal_weight(self) -> float:
        """One over the target tokens of a global batch in which nothing is masked."""
        return 1.0 / (self.config.batch.global_ * self.config.model.context)

    def loss(self, batch: Batch) -> Tensor:
        """Summed cross-entropy of a micro-batch, float32."""
        return batch_loss(self.decoder, batch, self.world.device, self.dtype, self.config.train.loss_chunk, self.loss_of)

    def balance(self) -> None:
        """Move the routers' balancing bias; nothing for a dense model."""
        if self.config.model.moe.experts:
            loads = balance_experts(self.decoder, self.config.model.moe.bias_rate, lambda load: self.world.sum_(load, "expert_load"))
            self.journal.add(loads)

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors of the training state by logical name."""
        return state_tensors(self.decoder, self.optimizer, self.average)


def batch_loss(
    decoder: Decoder, batch: Batch, device: torch.device, dtype: torch.dtype, chunk: int, loss_of: LossFunction = sequence_loss
) -> Tensor:
    """Summed cross-entropy of a batch under `decoder`, float32; no logits beyond `chunk` tokens are held."""
    return loss_of(decoder, *device_batch(batch, device), dtype, chunk)


def build(run: Run, config: Config, world: World, corpus: TokenCorpus, stop: StopRequest, journal: Journal) -> Parts:
    """Build a rank's parts and take up the run's newest snapshot if it has one."""
    decoder = build_decoder(config.model, config.run.seed, world.device)
    loss_of: LossFunction = sequence_loss
    if config.compile.enabled == "on":
        loss_of = compile_model(decoder, config, DTYPES[config.precision.compute], micro_batch(config, world.size), world, journal.warn)
    parts = Parts(
        run=run,
        config=config,
        world=world,
        corpus=corpus,
        plan=BatchPlan(corpus.train, config.model.context, config.batch.global_, config.run.seed, config.data.document_mask),
        decoder=decoder,
        loss_of=loss_of,
        reducer=GradientReducer(decoder.parameters(), world, config.layout.bucket_mb),
        optimizer=build_optimizer(decoder, config.optim),
        average=WeightAverage(decoder, config.optim.ema) if config.optim.ema else None,
        journal=journal,
        stop=stop,
        timer=PhaseTimer(world.device),
    )
    snapshots = list_snapshots(run.snapshots)
    if snapshots:
        parts.progress = Progress(**load_snapshot(snapshots[-1], parts.tensors()))
        parts.saved_step = parts.progress.step
    return parts
