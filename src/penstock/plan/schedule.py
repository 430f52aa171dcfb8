"""What a pipeline schedule comes to: bubble, makespan beside its proven bound, memory; for a named kind, the best that can be found, or one loaded.

Costs are of one rank's share of a micro-batch, so kinds with other numbers of chunks compare at equal work; or of every stage, where a file or a
timeline gives them, and then only kinds of as many stages can be asked for. With a barrier (an optimizer step that waits for all ranks, as the norm
of all gradients makes it) the makespan counts; without one, the time per step in the long run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from penstock.config import ConfigError
from penstock.parallel.pipeline.bounds import least_memory, makespan_bound, period_bound
from penstock.parallel.pipeline.check import SLACK, ScheduleError, check_schedule
from penstock.parallel.pipeline.kinds import KINDS, candidates, named_schedule
from penstock.parallel.pipeline.plan import CHUNKS
from penstock.parallel.pipeline.schedule import Costs, Schedule
from penstock.parallel.pipeline.simulate import Timing, simulate
from penstock.parallel.pipeline.synthesise import best_schedule
from penstock.parallel.pipeline.timeline import Timeline, measured_costs
from penstock.plan.stage_costs import Share

AUTO = "auto"


@dataclass(frozen=True)
class Pipeline:
    """What a schedule is asked for: its size, its costs (a rank's share, or every stage), the cap (× 1F1B's memory) and whether steps are parted."""

    ranks: int
    micro_batches: int
    costs: Share | Costs
    cap: float | None = None
    barrier: bool = True

    def costs_of(self, stages: int) -> Costs:
        """The costs of a cut into so many stages; raises `ConfigError` if they are given for another cut."""
        if isinstance(self.costs, Costs):
            given = len(self.costs.forward)
            if given != stages:
                raise ConfigError(f"costs are given for {given} stages, and this schedule has {stages}")
            return self.costs
        chunks = stages / self.ranks
        forward, input_grad, weight_grad = ((share / chunks,) * stages for share in self.costs[:3])
        return Costs(forward, input_grad, weight_grad, (self.costs[3],) * (stages - 1), (1 / chunks,) * stages)


@dataclass(frozen=True)
class Outcome:
    """The schedule of the kind `asked` for (auto may find another's best), its costs and what it takes; `seconds` is what making it took."""

    asked: str
    schedule: Schedule
    costs: Costs
    timing: Timing
    barrier: bool
    lower_bound: float
    seconds: float

    @property
    def step(self) -> float:
        """The time of a step that counts: makespan with a barrier, period without."""
        return self.timing.step(self.barrier)

    @property
    def bubble(self) -> float:
        """The idle part of a step."""
        return self.timing.idle(self.barrier)

    @property
    def peak(self) -> float:
        """The most a rank holds, in units of one rank's share of a micro-batch."""
        return max(self.timing.peak_memory)

    @property
    def least_bubble(self) -> float:
        """The bubble at the lower bound."""
        return 1 - sum(self.timing.work) / (len(self.timing.work) * self.lower_bound) if self.lower_bound else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON. `lower_bound` is of the time of a step that counts, `lower_bound_bubble` the bubble there."""
        return {
            "asked": self.asked,
            "kind": self.schedule.kind,
            "ranks": self.schedule.ranks,
            "chunks": self.schedule.chunks,
            "micro_batches": self.schedule.micro_batches,
            "barrier": self.barrier,
            "bubble": self.bubble,
            "makespan": self.timing.makespan,
            "period": self.timing.period,
            "steady_bubble": self.timing.steady_bubble,
            "lower_bound": self.lower_bound,
            "lower_bound_bubble": self.least_bubble,
            "peak_activations": self.peak,
            "seconds": self.seconds,
        }


def solve(pipeline: Pipeline, kind: str = AUTO, chunks: int = 0) -> Outcome:
    """The schedule of a kind, or the best that is found; raises `ConfigError` where the kind, the numbers or the cap do not go together.

    Auto tries one, two and four chunks a rank unless `chunks` says how many, and takes the cap to be 1 if there is none.
    """
    start = time.perf_counter()
    if kind != AUTO:
        return outcome_of(kind, named_schedule(kind, pipeline.ranks, pipeline.micro_batches, chunks), pipeline, start)
    capped = replace(pipeline, cap=1.0) if pipeline.cap is None else pipeline
    given = len(pipeline.costs.forward) // pipeline.ranks if isinstance(pipeline.costs, Costs) else 0
    tried = [chunks or given] if chunks or given else list(CHUNKS)
    named = [schedule for count in tried for schedule in candidates(pipeline.ranks, pipeline.micro_batches, count)]
    synthesised = [count for count in tried if count > 1] or tried  # with one, the named kinds: a search with several is never worse
    choice = best_schedule(
        lambda rank_of: pipeline.costs_of(len(rank_of)), pipeline.ranks, pipeline.micro_batches, capped.cap, pipeline.barrier, synthesised, named
    )
    return outcome_of(AUTO, choice.schedule, capped, start)


def outcome_of(asked: str, schedule: Schedule, pipeline: Pipeline, start: float) -> Outcome:
    """Check and time a schedule whose making began at `start` (time.perf_counter); raises `ScheduleError` if it cannot be run or holds too much."""
    seconds = time.perf_counter() - start
    costs = pipeline.costs_of(schedule.stages)
    _check_cap(pipeline, schedule.rank_of, costs)
    check_schedule(schedule, costs, pipeline.cap)
    bound = makespan_bound if pipeline.barrier else period_bound
    least = bound(costs, schedule.rank_of, schedule.micro_batches, pipeline.cap)
    return Outcome(asked, schedule, costs, simulate(schedule, costs), pipeline.barrier, least, seconds)


def _check_cap(pipeline: Pipeline, rank_of: tuple[int, ...], costs: Costs) -> None:
    """Raise `ScheduleError` for a cap below what any schedule needs."""
    least = least_memory(costs, rank_of) / pipeline.ranks
    if pipeline.cap is not None and pipeline.cap < least * (1 - SLACK):
        raise ScheduleError(
            f"a cap of {pipeline.cap:g} × 1F1B's activations is below what any schedule needs: {least:.4g}, one micro-batch a rank; raise it"
        )


def compare(pipeline: Pipeline) -> tuple[list[Outcome], dict[str, str]]:
    """All named kinds with their default chunks (those that take any number, with twice as many too) and the best that is found.

    Beside them, why others are not there, by name; raises `ConfigError` if none is.
    """
    outcomes, refused = [], {}
    asked = [(kind, chunks) for kind, made in KINDS.items() for chunks in ((made.chunks,) if made.most_chunks else (made.chunks, 2 * made.chunks))]
    for kind, chunks in [*asked, (AUTO, 0)]:
        try:
            outcomes.append(solve(pipeline, kind, chunks))
        except ConfigError as error:
            refused[f"{kind} × {chunks}" if chunks else kind] = str(error)
    if not outcomes:
        raise ConfigError(f"no kind of schedule can do this: {refused[AUTO]}")
    return outcomes, refused


def replan(timeline: Timeline, cap: float | None, barrier: bool) -> Outcome:
    """What an executed timeline should have been: the best schedule that is found for the costs it shows, with as many chunks a rank."""
    costs = measured_costs(timeline)
    ranks = len(timeline.spans)
    return solve(Pipeline(ranks, timeline.micro_batches, costs, cap, barrier), AUTO, len(timeline.rank_of) // ranks)


def _best(pipeline: Pipeline, chunks: int) -> Schedule:
    raise ScheduleError("TEMPORARY")
