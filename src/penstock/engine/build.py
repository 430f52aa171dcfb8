"""Assembling what a rank trains with, from the run's resolved config, in one fixed and readable order.

layout → weights on it → size of micro-batches → shares of the batch → gradient exchange → optimizer → averaged weights → compile → state. Each
part is built by its own room from its own config section; nothing here decides how a part works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from penstock.comm import GradientReducer, World, build_between, measured_nodes
from penstock.config import AlertsSection, Config
from penstock.data import Batch, BatchPlan, SamplePlan, TokenCorpus, parse_skip
from penstock.engine.compile import LossFunction, compile_model, sequence_loss
from penstock.engine.control import StopRequest
from penstock.engine.exchange import apart_of, check_exchange, check_rank, placements_apart, placements_of, room_for_locals, settle, state_apart
from penstock.engine.guard.heart import Heart
from penstock.engine.guard.judge import Judge
from penstock.engine.guard.peers import Peers
from penstock.engine.late import LateCheck
from penstock.engine.pipeline import Pipeline
from penstock.engine.probes import Probes
from penstock.engine.record.journal import Journal
from penstock.engine.record.recording import Recording
from penstock.engine.record.timer import PhaseTimer
from penstock.engine.requests.agenda import Due, agreed_due, due_after, settings_at
from penstock.engine.requests.commands import Inbox
from penstock.engine.saving import Saving
from penstock.engine.state import Progress, parameter_of, state_placements, state_tensors, when_nodes_change, withheld_placements, withheld_tensors
from penstock.engine.step import device_batch
from penstock.engine.tune.balance import DataBalancer
from penstock.engine.tune.choose_exchange import ExchangeChooser
from penstock.engine.tune.experts import ExpertPlacer, first_slots
from penstock.engine.tune.micro import MicroTuner, build_tuner, skip_what_does_not_fit
from penstock.engine.tune.replan import Watch
from penstock.models import Decoder, balance_experts
from penstock.optim import Optimizer, WeightAverage, build_optimizer
from penstock.parallel import Formats, Laid, Layout, Mesh, Placement, Weights, build_layout, context_positions, lay_out, said_nodes, shared_matrices
from penstock.parallel.pipeline.plan import PipelinePlan
from penstock.parallel.shares import Shares
from penstock.plan.pipeline import agreed_plan, make_plan
from penstock.store import Damaged, Manifest, Run, Snapshot, agreed_manifest, list_snapshots, load_snapshot, save_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass
class Core:
    """What a step needs: the data's plan, the laid-out model, its optimizer, and how ranks exchange. It knows no run and no files."""

    config: Config
    world: World
    plan: SamplePlan
    laid: Laid
    tuner: MicroTuner
    balancer: DataBalancer
    reducer: GradientReducer
    optimizer: Optimizer
    average: WeightAverage | None
    placer: ExpertPlacer
    chooser: ExchangeChooser
    stop: StopRequest
    timer: PhaseTimer
    loss_of: LossFunction = sequence_loss
    #: This rank's stages where the layers are cut over a pipeline.
    pipeline: Pipeline | None = None
    #: Takes steps that are checked after their update, if the config says so.
    late: LateCheck | None = None
    #: Measures activations, gradients and weights by layer.
    probes: Probes = field(default_factory=Probes)
    #: Further numbers of the step, for whoever writes its row.
    notes: dict[str, float] = field(default_factory=dict)
    #: Whether an update has begun that `Parts.progress` does not count yet: the state is that of no step.
    torn: bool = False
    #: Says which steps are not to be applied.
    judge: Judge = field(default_factory=lambda: Judge(AlertsSection(), []))
    #: Commands to the run, on the rank that leads.
    inbox: Inbox = field(default_factory=Inbox)

    @property
    def dtype(self) -> torch.dtype:
        """Format of activations and matrix products."""
        return DTYPES[self.config.precision.compute]

    @property
    def decoder(self) -> Decoder:
        """The model, as laid out on this rank."""
        return self.laid.decoder

    @property
    def weights(self) -> Weights:
        """The trained parameters, as this rank holds them."""
        return self.laid.weights

    @property
    def mesh(self) -> Mesh:
        """The ranks in the form of the run's layout."""
        return self.laid.weights.mesh

    @property
    def layout(self) -> Layout:
        """Which axes the ranks form."""
        return self.mesh.layout

    @property
    def micro(self) -> int:
        """Sequences this rank computes at a time."""
        return self.tuner.size

    @property
    def token_copies(self) -> int:
        """Ranks that compute the loss of the same tokens."""
        return self.layout.ranks // self.layout.size("pipeline", *self.layout.token_axes)

    @property
    def ends_here(self) -> bool:
        """Whether this rank computes losses."""
        return self.pipeline is None or self.pipeline.ends_here

    def sequences_of(self, sample_ids: np.ndarray, rank: int) -> np.ndarray:
        """The sequences of a global batch that a rank has a part in."""
        return self.balancer.cut(sample_ids, rank, self.shares)

    @property
    def shares(self) -> Shares:
        """Each replica's sequences of a global batch; even ones while sizes of micro-batches are being tried."""
        return self.balancer.shares if self.tuner.settled else self.balancer.even

    @property
    def nominal_weight(self) -> float:
        """One over the target tokens of a global batch in which nothing is masked."""
        return 1.0 / (self.config.batch.global_ * self.config.model.context)

    def own_tokens(self, batch: Batch) -> Batch:
        """Of whole sequences, the tokens that this rank computes the loss of."""
        ranks, place = self.layout.context, self.layout.coordinate(self.world.rank, "context")
        return batch if ranks == 1 else batch.columns(context_positions(self.config.model.context, ranks, place))

    def compile(self, warn: Callable[[str], None]) -> None:
        """Compile the model for micro-batches of the present size, if the config says so."""
        if self.config.compile.enabled != "on":
            return
        self.weights.drop_gradients()  # the check compares gradients from nothing
        if self.pipeline is not None:
            self.pipeline.compile(self.micro, warn)
        else:
            self.loss_of = compile_model(self.decoder, self.config, self.dtype, self.micro, self.world, warn, self.layout.sharded)

    def loss(self, batch: Batch) -> Tensor:
        """Summed cross-entropy of this rank's tokens of a micro-batch, float32 (float64 where that computes)."""
        return batch_loss(self.decoder, batch, self.world.device, self.dtype, self.config.train.loss_chunk, self.loss_of)

    def balance(self) -> None:
        """Move the routers' balancing bias, and take note of the experts' load; nothing for a dense model."""
        if self.config.model.moe.experts:
            self.notes |= balance_experts(self.decoder, self.config.model.moe.bias_rate, self._sum_loads)
            self.probes.take_loads()

    def place_experts(self, steps: int) -> None:
        """After so many steps, move experts to other ranks if that is due."""
        self.placer.place(steps, self.tensors, lambda name: parameter_of(name) or "")

    def _sum_loads(self, load_le: Tensor) -> None:
        """Sum the loads of this rank's layers over all ranks, in place; every rank gets to see those of all layers."""
        first, here = self.config.model.moe.first_dense, [int(name) for name in self.decoder.blocks]
        rows = [layer - first for layer in here if layer >= first]
        all_le = torch.zeros(self.config.model.layers - first, load_le.shape[1], dtype=load_le.dtype, device=self.world.device)
        all_le[rows] = load_le.to(all_le.device)
        self.placer.observe(self.world.sum_(all_le, "expert_load"))
        self.probes.note_loads(all_le, first)
        load_le.copy_(all_le[rows])

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors of this rank's training state by logical name."""
        tensors, apart = state_tensors(self.weights, self.laid.buffers, self.optimizer, self.average), apart_of(self.reducer)
        return state_apart(tensors, self.weights, apart) if apart else tensors | withheld_tensors(self.weights, self.reducer)

    def placements(self) -> dict[str, Placement]:
        """Where those of `tensors` lie that are not whole on every rank."""
        tensors = self.tensors()
        placements = state_placements(tensors, self.weights.placements | self.laid.buffer_placements)
        if apart_of(self.reducer):
            return placements_apart(placements, self.weights)
        return placements | withheld_placements(tensors, self.weights, self.config.exchange.rank)


@dataclass
class Parts(Core):
    """Everything one rank trains a run with."""

    run: Run = field(kw_only=True)
    corpus: TokenCorpus = field(kw_only=True)
    journal: Journal = field(kw_only=True)
    progress: Progress = field(default_factory=Progress, kw_only=True)
    saving: Saving = field(kw_only=True)
    #: The step after which the loop ends.
    until: int = field(kw_only=True)
    #: Whether that is so whatever `train.steps` becomes.
    ends_at_until: bool = False
    #: Changes to take up when the run comes to their steps, which it has taken before.
    agenda: list[Due] = field(default_factory=list, kw_only=True)
    watch: Watch = field(default_factory=Watch, kw_only=True)
    #: Keeps copies of the state in other ranks' memory.
    peers: Peers = field(default_factory=Peers, kw_only=True)
    #: Writes down what this rank measures, a row a step.
    recording: Recording = field(default_factory=Recording, kw_only=True)
    #: Says where this rank is, to whoever watches over it.
    heart: Heart = field(default_factory=Heart, kw_only=True)


def batch_loss(
    decoder: Decoder, batch: Batch, device: torch.device, dtype: torch.dtype, chunk: int, loss_of: LossFunction = sequence_loss
) -> Tensor:
    """Summed cross-entropy of a batch under `decoder`, float32; no logits beyond `chunk` tokens are held."""
    return loss_of(decoder, *device_batch(batch, device), dtype, chunk)


def on_nodes(world: World, config: Config) -> World:
    """The world with the nodes that `exchange.topology` says; all ranks must call it."""
    topology = config.exchange.topology
    if topology == world.topology:
        return world
    nodes = measured_nodes(world) if topology == "measured" else said_nodes(config, world.size)
    return replace(world, nodes=nodes, topology=topology)


def build_core(
    config: Config,
    world: World,
    plan: SamplePlan,
    stop: StopRequest,
    warn: Callable[[str], None],
    saved: Progress | None = None,
    piped: PipelinePlan | None = None,
    fresh: bool = True,
) -> Core:
    """Build what a rank takes steps with, from a resolved config; `saved` are the numbers of a state that will be taken up.

    `piped` is the pipeline's plan, if it is not to be made from estimates; the state is then handed over by another's, and left unset here, and
    the model is not compiled. Neither is it done where the core is not to be `fresh`.
    """
    saved = saved or Progress()
    world = on_nodes(world, config)
    layout = build_layout(config, world.size, world.nodes)
    check_exchange(config, layout)
    mesh = Mesh(layout, world, config.layout.timeout_s)
    dtype = DTYPES[config.precision.compute]
    placed = first_slots(config, layout, saved.slots)
    tuner = build_tuner(config, world, layout, saved.micro)
    formats = Formats(torch.float64 if dtype == torch.float64 else torch.float32, dtype)
    seed = config.run.seed if piped is None and fresh else None
    if piped is None and layout.pipeline > 1:
        piped = agreed_plan(world, lambda: make_plan(config, layout, tuner.size))
    laid = lay_out(config.model, seed, mesh, formats, placed, piped.stages if piped else None)
    chooser = ExchangeChooser(config.exchange, layout.node, saved.exchange)
    between = build_between(chooser.section(), lambda parameter: laid.placement_of(parameter).cuttable)
    check_rank(between, laid.weights.placements.values())
    reducer = GradientReducer(laid.routes(), config.layout.bucket_mb, world.meter, between)
    core = Core(
        config=config,
        world=world,
        plan=plan,
        laid=laid,
        tuner=tuner,
        balancer=DataBalancer(config, layout, world, saved.shares),
        reducer=reducer,
        optimizer=build_optimizer(laid.weights.locals, config.optim, shared_matrices(laid.weights)),
        average=WeightAverage(laid.weights.locals, config.optim.ema) if config.optim.ema else None,
        placer=ExpertPlacer(laid, placed, config.layout.expert_every),
        chooser=chooser,
        stop=stop,
        timer=PhaseTimer(world.device),
        pipeline=Pipeline(config, laid, piped, reducer, dtype) if piped else None,
        late=LateCheck() if config.pipeline.check == "after" else None,
        judge=Judge(config.alerts, saved.judged),
    )
    skip_what_does_not_fit(core)
    if core.tuner.settled and seed is not None:
        core.compile(warn)
    return core


def build(run: Run, config: Config, world: World, corpus: TokenCorpus, stop: StopRequest, journal: Journal) -> Parts:
    """Build a rank's parts, and take up the run's newest snapshot if it has one; one that is damaged is named, and the one before it taken."""
    snapshots = list_snapshots(run.folder)
    while True:
        try:
            return _build(run, config, world, corpus, stop, journal, snapshots[-1] if snapshots else None)
        except Damaged as error:
            if len(snapshots) == 1:
                raise
            snapshots.pop()
            journal.rewind(snapshots[-1].step)
            journal.warn(f"{error}; going on from step {snapshots[-1].step} instead")


def _build(
    run: Run, config: Config, world: World, corpus: TokenCorpus, stop: StopRequest, journal: Journal, snapshot: Snapshot | None
) -> Parts:
    """Build a rank's parts, and take up a snapshot with the settings of its step; raises `Damaged` on all ranks if that is."""
    manifest = agreed_manifest(snapshot, world) if snapshot else None
    due = agreed_due(world, due_after(run, manifest) if world.is_lead else []) if manifest else []
    if manifest and due:
        config = settings_at(config, due, manifest)
        journal.follow(config)
        if world.is_lead:
            save_config(run, config)
    saved = Progress(**manifest.numbers) if manifest else Progress()
    core = build_core(config, world, batch_plan(config, corpus, saved), stop, journal.warn, saved)
    saving = Saving(run, config, core.world, manifest)
    parts = whole_parts(core, run, corpus, journal, saving)
    if snapshot and manifest:
        parts.progress = read_state(parts, snapshot, manifest)
    saving.prepare(parts)
    return parts


def read_state(core: Core, snapshot: Snapshot, manifest: Manifest) -> Progress:
    """Fill a core's state from a snapshot, on whatever ranks and nodes that was made; its numbers.

    All ranks must call it; raises `Damaged` on all.
    """
    room = room_for_locals(core, manifest.tensors)
    tensors, placements = core.tensors() | room, core.placements() | placements_of(room, core)
    numbers = load_snapshot(snapshot, tensors, core.world, placements, core.layout, when_nodes_change)
    settle(core, manifest.tensors, room)
    return Progress(**numbers)


def whole_parts(core: Core, run: Run, corpus: TokenCorpus, journal: Journal, saving: Saving) -> Parts:
    """A core with what a run needs around it."""
    shared = {f.name: getattr(core, f.name) for f in fields(core)}
    shared["inbox"] = Inbox(run.path if core.world.is_lead else None)
    return Parts(**shared, run=run, corpus=corpus, journal=journal, saving=saving, until=core.config.train.steps)


def batch_plan(config: Config, corpus: TokenCorpus, progress: Progress) -> BatchPlan:
    """The samples of every step from the last change of batches on."""
    section, seed = config.model, config.run.seed
    skip = parse_skip(config.data.skip)
    return BatchPlan(corpus.train, section.context, config.batch.global_, seed, config.data.document_mask, progress.since, progress.drawn, skip)
