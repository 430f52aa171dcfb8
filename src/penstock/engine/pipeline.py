"""A rank's part in a pipeline: its stages, run by a schedule, for training and for scoring.

Every rank of the pipeline reads the same sequences; the first stage takes their tokens, the last their targets, and only activations travel.
Gradients of a stage are exchanged over its replicas as soon as its last micro-batch is through, while other stages still work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from penstock.comm import GradientReducer
from penstock.config import Config, ModelSection
from penstock.engine.compile import compile_blocks, run_compiled, run_eagerly
from penstock.parallel import Laid, Layout
from penstock.parallel.pipeline.plan import PipelinePlan
from penstock.parallel.pipeline.runtime import Mark, Message, Runtime, link_pairs
from penstock.parallel.pipeline.schedule import Action, Schedule
from penstock.parallel.pipeline.stage import DecoderStage, MicroBatch, Pass
from penstock.parallel.pipeline.stages import Stages
from penstock.parallel.pipeline.timeline import Span, Timeline
from penstock.parallel.placement import padded_part
from penstock.plan.pipeline import agreed_plan, make_plan


class Pipeline:
    """The stages of this rank and the runtime that drives them; made by all ranks together, as it makes their links."""

    def __init__(self, config: Config, laid: Laid, plan: PipelinePlan, reducer: GradientReducer, dtype: torch.dtype) -> None:
        self._config, self._laid, self._reducer, self._dtype = config, laid, reducer, dtype
        mesh = laid.weights.mesh
        self.rank = mesh.layout.coordinate(mesh.world.rank, "pipeline")
        self._shared = Pass()
        self.stages = {
            index: DecoderStage(
                laid.decoder, part, self._shared, dtype, config.train.loss_chunk, laid.sharder.keep, partial(self._complete, index)
            )
            for index, (part, rank) in enumerate(zip(plan.stages.parts, plan.stages.rank_of))
            if rank == self.rank
        }
        self._links = mesh.links(link_pairs(plan.schedule))
        self._micro = 0
        self._always_split = False
        self.take_up(plan)
        self._stages_of = self._owners(plan.stages)
        #: What the last step did, and when.
        self.marks: list[Mark] = []

    @property
    def ends_here(self) -> bool:
        """Whether this rank computes the loss."""
        return self.plan.stages.rank_of[-1] == self.rank

    def compile(self, micro: int, warn: Callable[[str], None]) -> None:
        """Compile the stages for micro-batches of that size after a check; all ranks must call it."""
        world = self._laid.weights.mesh.world
        self._always_split = self._config.pipeline.schedule == "auto"  # whatever the next plan is, what was checked is what runs
        self._shared.split |= self._always_split
        args = self._laid.decoder, self._config, self._dtype, micro, world, warn
        self._shared.kernel = compile_blocks(*args, partly=True, split=self._shared.split)

    def compile_as(self, other: Pipeline) -> None:
        """Compile, if `other` is compiled, whose stages had other layers of the same model and micro-batches of that size; its check holds."""
        self._always_split, self._shared.kernel = other._always_split, other._shared.kernel
        self._shared.split |= self._always_split
        if self._shared.kernel is not None:
            run_compiled(self._laid.decoder, self._shared.split)

    def run_eagerly(self) -> None:
        """Take `compile` back: micro-batches will have other sizes."""
        run_eagerly(self._laid.decoder)
        self._shared.kernel = None

    def take_up(self, plan: PipelinePlan) -> None:
        """Go on with a plan that has the same stages on the same ranks."""
        self.plan = plan
        # operators that can be split keep weights as they are, where others would keep a copy in a narrower format for each micro-batch under way
        split = self._always_split or self._dtype == torch.bfloat16
        self._shared.split = split or any(action.work == "W" for row in plan.schedule.actions for action in row)
        self._runtime = Runtime(plan.schedule, self.rank, self._links, self.stages, self._room)
        if self._laid.weights.mesh.world.device.type == "cuda":
            self._runtime.clock = _device_clock

    def train(self, batches: list[MicroBatch], weight: float) -> list[Tensor]:
        """Gradients of `weight` times the losses' sum; returns each micro-batch's loss, on the ranks that have it."""
        if len(batches) != self.plan.schedule.micro_batches:  # their size is being tried, or the shares of the batch have changed
            mesh, micro = self._laid.weights.mesh, len(batches[0][0])
            self.take_up(agreed_plan(mesh.world, lambda: make_plan(self._config, mesh.layout, micro, self.plan.stages, len(batches))))
        self._begin(batches, weight)
        self._laid.sharder.begin_overlapping()
        self._reducer.begin()
        self._open = {parameter: set(stages) for parameter, stages in self._stages_of.items()}
        self.marks = self._runtime.run()
        self._laid.sharder.finish()
        return self._losses()

    def spans(self) -> list[Span]:
        """The actions of the last step with their seconds, by this rank's clock."""
        if self._laid.weights.mesh.world.device.type != "cuda":
            return [Span(*mark) for mark in self.marks]
        torch.cuda.synchronize()
        first = self.marks[0].start
        return [Span(action, first.elapsed_time(start) / 1e3, first.elapsed_time(end) / 1e3) for action, start, end in self.marks]

    def host_spans(self) -> list[Span]:
        """The actions of the last step by this host's `time.perf_counter`; the device must have come to its end."""
        if self._laid.weights.mesh.world.device.type != "cuda":
            return self.spans()
        now = _device_clock()
        now.synchronize()
        here = time.perf_counter()
        return [Span(action, here - start.elapsed_time(now) / 1e3, here - end.elapsed_time(now) / 1e3) for action, start, end in self.marks]

    def timeline(self, step: int) -> Timeline:
        """The last step as all ranks of this pipeline executed it, on one clock: each counts from a barrier, which all leave at nearly one moment."""
        mesh, schedule = self._laid.weights.mesh, self.plan.schedule
        spans = self.spans()
        mesh.world.barrier()
        met = self._runtime.clock()
        if mesh.world.device.type == "cuda":
            torch.cuda.synchronize()
            met = self.marks[0].start.elapsed_time(met) / 1e3
        times = torch.zeros(max(map(len, schedule.actions)), 2, dtype=torch.float64, device=mesh.world.device)
        for index, (_, start, end) in enumerate(spans):
            times[index, 0], times[index, 1] = start - met, end - met
        of_rank = mesh.axis("pipeline").all_gather(times, 0, "timeline").view(schedule.ranks, -1, 2).tolist()
        rows = tuple(tuple(Span(action, *pair) for action, pair in zip(row, pairs)) for row, pairs in zip(schedule.actions, of_rank))
        return Timeline(schedule.kind, schedule.rank_of, schedule.micro_batches, rows, 1, step)

    def hop_seconds(self) -> float:
        """Time of one hop of a micro-batch's activations between neighbours: a message goes up the ranks and back; the best of three."""
        world, last = self._laid.weights.mesh.world, self.plan.schedule.ranks - 1
        took = []
        for _ in range(3):
            world.barrier()
            began = time.perf_counter()
            for source, target in ((self.rank - 1, self.rank + 1), (self.rank + 1, self.rank - 1)):
                message = self._room(None)
                if 0 <= source <= last:
                    self._links.receivers[source].expect(["a timing message"], self._room)
                    message = self._links.receivers[source].take("a timing message")
                if 0 <= target <= last:
                    self._links.senders[target].send(message, "a timing message")
            for sender in self._links.senders.values():
                sender.finish()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - began if self.rank == 0 else 0.0)
        return max(world.gather_numbers(min(took), "hop")) / (2 * last)

    def score(self, batches: list[MicroBatch]) -> list[Tensor]:
        """Each micro-batch's loss, on the ranks that have it; no gradients. All batches have one shape."""
        losses = []
        together = 2 * self.plan.schedule.ranks  # enough to fill the pipeline; all outputs of a stage are held until they are taken
        for start in range(0, len(batches), together):
            group = batches[start : start + together]
            self._begin(group, 1.0)
            Runtime(forwards(self.plan.schedule, len(group)), self.rank, self._links, self.stages, self._room).run()
            losses += self._losses()
        return losses

    def _begin(self, batches: list[MicroBatch], weight: float) -> None:
        shared = self._shared
        shared.batches, shared.weight, shared.losses = batches, weight, {}
        self._micro = len(batches[0][0])

    def _losses(self) -> list[Tensor]:
        return [loss for _, loss in sorted(self._shared.losses.items())]

    def _room(self, message: Any) -> Tensor:
        """Room for a micro-batch's activations; for what is no `Message` of the runtime's, as large as the first's."""
        layout, model = self._laid.weights.mesh.layout, self._laid.decoder.model
        micro = len(self._shared.batches[message.micro][0]) if isinstance(message, Message) else self._micro
        return torch.empty(stream_shape(model, layout, micro), dtype=self._dtype, device=self._laid.weights.mesh.world.device)

    def _complete(self, stage: int) -> None:
        """The last gradient of a stage is there: exchange those of the parameters that no other stage of this rank has yet to add to."""
        decoder = self._laid.decoder
        self._laid.sharder.reduce(decoder.blocks[str(layer)] for layer in self.stages[stage].part.layers)
        ready = []
        for parameter, stages in self._open.items():
            if stage in stages:
                stages.remove(stage)
                if not stages:
                    ready.append(parameter)
        self._reducer.settle(ready)

    def _owners(self, stages: Stages) -> dict[nn.Parameter, set[int]]:
        """For each parameter here, this rank's stages that have a part in its gradient."""
        return {
            parameter: {index for index, stage in self.stages.items() if stages.uses(stage.part, name)}
            for name, parameter in self._laid.weights.parameters.items()
        }


def _device_clock() -> torch.cuda.Event:
    """A moment of the device's stream, which the host does not wait for."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def stream_shape(model: ModelSection, layout: Layout, micro: int) -> tuple[int, int, int]:
    """Shape (b, t, d) of what this rank holds of `micro` sequences between blocks."""
    tokens = model.context // layout.context
    return micro, tokens if layout.topology == "2.5d" else tokens // layout.row, padded_part(model.dim, layout.column)


def forwards(schedule: Schedule, micro_batches: int) -> Schedule:
    """Only the forward passes of so many micro-batches, on the same stages: all of a rank's first stage, then all of its next."""
    rows = []
    for rank in range(schedule.ranks):
        stages = [stage for stage, where in enumerate(schedule.rank_of) if where == rank]
        rows.append(tuple(Action("F", stage, micro) for stage in stages for micro in range(micro_batches)))
    return Schedule("forward", schedule.rank_of, micro_batches, tuple(rows))
