"""Assembling what a rank trains with, from the run's resolved config, in one fixed and readable order.

model → compile → gradient exchange → optimizer → averaged weights → state. Each part is built by its own room from
its own config section; nothing here decides how a part works.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock.comm import GradientReducer, World
from penstock.config import Config
from penstock.data import Batch, BatchPlan, TokenCorpus
from penstock.engine.compile import compile_model
from penstock.engine.control import StopRequest
from penstock.engine.journal import Journal
from penstock.engine.resolve import micro_batch
from penstock.engine.state import Progress, saved_buffers, state_placements, state_tensors
from penstock.engine.step import device_batch
from penstock.engine.timer import PhaseTimer
from penstock.models import Decoder, balance_experts, build_decoder, lm_loss
from penstock.models.loss import Kernel, softmax_gradient
from penstock.optim import Optimizer, WeightAverage, build_optimizer
from penstock.parallel import Layout, Mesh, Placement, Weights, shared_matrices
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
    weights: Weights
    kernel: Kernel
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

    @property
    def nominal_weight(self) -> float:
        """One over the target tokens of a global batch in which nothing is masked."""
        return 1.0 / (self.config.batch.global_ * self.config.model.context)

    def loss(self, batch: Batch) -> Tensor:
        """Summed cross-entropy of a micro-batch, float32."""
        return batch_loss(self.decoder, batch, self.world.device, self.dtype, self.config.train.loss_chunk, self.kernel)

    def balance(self) -> None:
        """Move the routers' balancing bias; nothing for a dense model."""
        if self.config.model.moe.experts:
            loads = balance_experts(self.decoder, self.config.model.moe.bias_rate, lambda load: self.world.sum_(load, "expert_load"))
            self.journal.add(loads)

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors of this rank's training state by logical name."""
        return state_tensors(self.weights, saved_buffers(self.decoder), self.optimizer, self.average)

    def placements(self) -> dict[str, Placement]:
        """Where those of `tensors` lie that are not whole on every rank."""
        return state_placements(self.tensors(), self.weights.placements)


def batch_loss(decoder: Decoder, batch: Batch, device: torch.device, dtype: torch.dtype, chunk: int, kernel: Kernel) -> Tensor:
    """Summed cross-entropy of a batch under `decoder`, float32; no logits beyond `chunk` tokens are held."""
    tokens_bt, targets_bt, documents_bt = device_batch(batch, device)
    hidden_btd = decoder(tokens_bt, documents_bt=documents_bt, dtype=dtype)
    return lm_loss(hidden_btd, decoder.head_weight_vd, targets_bt, chunk_tokens=chunk, kernel=kernel)


def build(run: Run, config: Config, world: World, corpus: TokenCorpus, stop: StopRequest, journal: Journal) -> Parts:
    """Build a rank's parts and take up the run's newest snapshot if it has one."""
    decoder = build_decoder(config.model, config.run.seed, world.device)
    kernel: Kernel = softmax_gradient
    if config.compile.enabled == "on":
        kernel = compile_model(decoder, DTYPES[config.precision.compute], micro_batch(config, world.size), config.model.context, world, journal.warn)
    mesh = Mesh(Layout(replicate=world.size), world, config.layout.timeout_s)
    weights = Weights(decoder, {name: Placement(tuple(p.shape)) for name, p in decoder.named_parameters()}, mesh)
    parts = Parts(
        run=run,
        config=config,
        world=world,
        corpus=corpus,
        plan=BatchPlan(corpus.train, config.model.context, config.batch.global_, config.run.seed, config.data.document_mask),
        decoder=decoder,
        weights=weights,
        kernel=kernel,
        reducer=GradientReducer(
            [(p, mesh.axis(*weights.placements[name].replicas(mesh.layout))) for name, p in weights.parameters.items()], config.layout.bucket_mb
        ),
        optimizer=build_optimizer(weights.locals, config.optim, shared_matrices(weights)),
        average=WeightAverage(weights.locals, config.optim.ema) if config.optim.ema else None,
        journal=journal,
        stop=stop,
        timer=PhaseTimer(world.device),
    )
    snapshots = list_snapshots(run.snapshots)
    if snapshots:
        parts.progress = Progress(**load_snapshot(snapshots[-1], parts.tensors(), world, parts.placements(), mesh.layout))
        parts.saved_step = parts.progress.step
    return parts
