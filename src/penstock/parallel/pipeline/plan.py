"""The plan of a pipeline: how many stages, which layers each has, where they live, and the schedule they run on.

    auto        for every number of chunks that the layers allow (1, 2, 4): split the layers by cost, and take the best of the synthesised
                schedules and the named kinds, by simulated makespan, within the memory cap
    a kind      its own wiring and chunks; the layers are split by cost for it
    file.csv    somebody's schedule in torch's format, checked first

Costs are estimated from FLOPs before anything ran, and measured afterwards (`stage_times.py`); a plan is a pure function of them. Cost: up to a
few seconds for large pipelines. When not to use it: with one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from penstock.config import ConfigError, ModelSection, PipelineSection
from penstock.parallel.pipeline.kinds import candidates, named_schedule
from penstock.parallel.pipeline.layer_costs import LayerCosts
from penstock.parallel.pipeline.schedule import Action, Costs, Schedule
from penstock.parallel.pipeline.simulate import Timing, simulate
from penstock.parallel.pipeline.split import check_stages, split_layers
from penstock.parallel.pipeline.stage_times import stage_costs
from penstock.parallel.pipeline.stages import Part, Stages
from penstock.parallel.pipeline.synthesise import best_schedule, synthesise

#: Chunks that auto tries.
CHUNKS = (1, 2, 4)
#: Share of an even stage's forward pass that a transfer is taken to last before it has been measured.
TRANSFER = 0.05


@dataclass(frozen=True)
class PipelinePlan:
    """The stages, their schedule, and what it was made for and promises; times in the unit of the costs it was made from."""

    stages: Stages
    schedule: Schedule
    costs: Costs
    timing: Timing
    #: Whether ranks wait for each other between steps.
    barrier: bool = True

    @property
    def step(self) -> float:
        """Time of a step by simulation."""
        return self.timing.step(self.barrier)

    @property
    def bubble(self) -> float:
        """The idle part of a step by simulation."""
        return self.timing.idle(self.barrier)

    def timed(self, costs: Costs) -> PipelinePlan:
        """The same plan under other costs."""
        return replace(self, costs=costs, timing=simulate(self.schedule, costs))

    def __str__(self) -> str:
        schedule, timing = self.schedule, self.timing
        layers = "/".join(str(len(part.layers)) for part in self.stages.parts)
        return (
            f"{schedule.kind} schedule of {schedule.micro_batches} micro-batches over {schedule.ranks} ranks × {schedule.chunks} stages, "
            f"layers {layers}, bubble {self.bubble:.1%} by estimated times, {max(timing.peak_memory):.1f} micro-batches held"
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; the timing follows from the rest."""
        parts = [[part.layers.start, part.layers.stop, part.embedding, part.head] for part in self.stages.parts]
        actions = [[list(action) for action in row] for row in self.schedule.actions]
        schedule = {"kind": self.schedule.kind, "micro_batches": self.schedule.micro_batches, "actions": actions}
        where = {"rank_of": self.stages.rank_of, "tied": self.stages.tied, "barrier": self.barrier}
        return {"parts": parts, **where, "schedule": schedule, "costs": asdict(self.costs)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> PipelinePlan:
        """What `as_dict` made of a plan."""
        parts = tuple(Part(range(first, last), embedding, head) for first, last, embedding, head in data["parts"])
        rank_of, made = tuple(data["rank_of"]), data["schedule"]
        actions = tuple(tuple(Action(*action) for action in row) for row in made["actions"])
        schedule = Schedule(made["kind"], rank_of, made["micro_batches"], actions)
        costs = Costs(**{name: tuple(values) for name, values in data["costs"].items()})
        return PipelinePlan(Stages(parts, rank_of, data["tied"]), schedule, costs, simulate(schedule, costs), data["barrier"])


def plan_pipeline(
    model: ModelSection,
    section: PipelineSection,
    ranks: int,
    micro_batches: int,
    layers: LayerCosts,
    stages: Stages | None = None,
    transfer: float | None = None,
    slowness: Sequence[float] | None = None,
) -> PipelinePlan:
    """Plan for the resolved `model` on so many ranks; `slowness` is how many times longer each takes than `layers` say.

    `stages` are those to keep, none: to be chosen. `transfer` is the time of one hop in the unit of `layers`. Raises `ConfigError` for what the
    layers or the kind cannot do.
    """
    if transfer is None:
        transfer = TRANSFER * sum(layer.forward for layer in layers.layers) / ranks

    @cache
    def parts_of(rank_of: tuple[int, ...]) -> tuple[Part, ...]:
        return stages.parts if stages else split_layers(model, len(rank_of), layers, rank_of, slowness=slowness)

    def costs_of(rank_of: tuple[int, ...]) -> Costs:
        return stage_costs(parts_of(rank_of), layers, transfer, rank_of, slowness)

    barrier = section.check == "before"
    if section.schedule != "auto":
        schedule = chosen_schedule(section, ranks, micro_batches)
    else:
        chunks = [c for c in ((section.chunks,) if section.chunks else CHUNKS) if c == 1 or ranks * c <= model.layers]
        ready = [schedule for count in chunks for schedule in candidates(ranks, micro_batches, count)]
        if stages is not None:
            ready = [schedule for schedule in ready if schedule.rank_of == stages.rank_of]
            ready.append(synthesise(costs_of(stages.rank_of), stages.rank_of, micro_batches, section.memory, barrier))
            chunks = []
        schedule = best_schedule(costs_of, ranks, micro_batches, section.memory, barrier, chunks, ready).schedule
    costs, parts = costs_of(schedule.rank_of), parts_of(schedule.rank_of)
    return PipelinePlan(Stages(parts, schedule.rank_of, model.tie_embeddings), schedule, costs, simulate(schedule, costs), barrier)


def chosen_schedule(section: PipelineSection, ranks: int, micro_batches: int) -> Schedule:
    """The schedule of a named kind or file; raises `ConfigError` if it is not for so many ranks and micro-batches."""
    if not section.schedule.endswith(".csv"):
        return named_schedule(section.schedule, ranks, micro_batches, section.chunks)
    from penstock.parallel.pipeline.torch_ir import read_csv

    path = Path(section.schedule)
    schedule = read_csv(path)
    if (schedule.ranks, schedule.micro_batches) != (ranks, micro_batches):
        raise ConfigError(
            f"pipeline.schedule = '{path}' is for {schedule.ranks} ranks and {schedule.micro_batches} micro-batches, and this run has "
            f"layout.pipeline = {ranks} and {micro_batches} micro-batches; change layout.pipeline or batch.micro, or take another schedule"
        )
    return schedule


def check_pipeline(model: ModelSection, section: PipelineSection, ranks: int, micro_batches: int) -> None:
    """Raise `ConfigError` if the layers or the kind cannot be so; cheap."""
    if section.schedule == "auto":
        check_stages(model.layers, ranks * (section.chunks or 1), ranks)
    else:
        check_stages(model.layers, chosen_schedule(section, ranks, micro_batches).stages, ranks)
