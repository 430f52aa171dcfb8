"""A pipeline step as it happened, or as it would: when every action began and ended on every rank, and what that says about costs.

`timeline_of` takes it from the simulator, the runtime from its clocks, `read_trace` from a file. `measured_costs` turns it back into the costs a
schedule is made from, so that a run tells what its schedule should have been:

    forward, input_grad, weight_grad   the median time of a stage's F, I and W over micro-batches and steps
    B                                  counts as I and W where a stage has no I and W of its own, split as those of all other stages together, else in halves
    transfer                           the least time between an end and the start that waits for it; the mean of both directions, which cancels the
                                       difference of two ranks' clocks. An upper bound, tight where a rank ever waited for the hop; 0 within a rank

Medians, since one late message or collection of garbage should not count; a machine that changes within the timeline is not seen by them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import NamedTuple

from penstock.parallel.pipeline.check import needs, split_backwards
from penstock.parallel.pipeline.schedule import Action, Costs, Schedule
from penstock.parallel.pipeline.simulate import Timing


class Span(NamedTuple):
    """An action and when it began and ended, in seconds of one clock."""

    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """The spans of every rank in their order, of `steps` steps one after the other; `first_step` is the number of the first, if it has one."""

    kind: str
    rank_of: tuple[int, ...]
    micro_batches: int
    spans: tuple[tuple[Span, ...], ...]
    steps: int = 1
    first_step: int | None = None

    @cached_property
    def start_s(self) -> float:
        """When the first action began."""
        return min((row[0].start_s for row in self.spans if row), default=0.0)

    @cached_property
    def makespan_s(self) -> float:
        """From the first action's start to the last one's end, over all steps."""
        return max((row[-1].end_s for row in self.spans if row), default=0.0) - self.start_s

    @cached_property
    def busy_s(self) -> tuple[float, ...]:
        """Time that each rank worked."""
        return tuple(sum(end - start for _, start, end in row) for row in self.spans)

    @property
    def bubble(self) -> float:
        """The idle part of all ranks' time."""
        return 1.0 - sum(self.busy_s) / (len(self.spans) * self.makespan_s) if self.makespan_s else 0.0

    @property
    def schedule(self) -> Schedule:
        """The schedule of the first step, in the order in which it was executed; not checked."""
        rows = tuple(tuple(action for action, _, _ in row[: len(row) // self.steps]) for row in self.spans)
        return Schedule(self.kind, self.rank_of, self.micro_batches, rows)


def timeline_of(schedule: Schedule, timing: Timing) -> Timeline:
    """The timeline of a simulated schedule; the unit of its costs counts as a second."""
    steps = max(len(spans) // max(1, len(row)) for spans, row in zip(timing.spans, schedule.actions))
    rows = tuple(tuple(Span(action, *span) for action, span in zip(row * steps, spans)) for row, spans in zip(schedule.actions, timing.spans))
    return Timeline(schedule.kind, schedule.rank_of, schedule.micro_batches, rows, steps)


def measured_costs(timeline: Timeline) -> Costs:
    """The costs that a timeline shows, in seconds; memory is 1 / chunks a stage. Takes a timeline whose schedule can be run."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in timeline.spans:
        for action, start, end in row:
            times[action.work, action.stage].append(end - start)
    stages = range(len(timeline.rank_of))
    typical = {key: median(values) for key, values in times.items()}
    inputs, weights = (sum(typical.get((work, s), 0.0) for s in stages if ("W", s) in typical) for work in ("I", "W"))
    share = inputs / (inputs + weights) if inputs + weights else 0.5
    backwards = {s: typical[("B", s)] for s in stages if ("W", s) not in typical}
    return Costs(
        tuple(typical["F", s] for s in stages),
        tuple(backwards[s] * share if s in backwards else typical["I", s] for s in stages),
        tuple(backwards[s] * (1 - share) if s in backwards else typical["W", s] for s in stages),
        _transfers(timeline),
        (1.0 / timeline.schedule.chunks,) * len(timeline.rank_of),
    )


def _transfers(timeline: Timeline) -> tuple[float, ...]:
    """For each pair of neighbouring stages, the least time from an end to the start that needs it."""
    split, last = split_backwards(timeline.schedule), len(timeline.rank_of) - 1
    gaps: dict[tuple[int, bool], list[float]] = defaultdict(list)
    for step in range(timeline.steps):
        spans = {}
        for row in timeline.spans:
            size = len(row) // timeline.steps
            spans |= {action: (start, end) for action, start, end in row[step * size : (step + 1) * size]}
        for action, (start, _) in spans.items():
            for need in needs(action, split, last):
                if need.stage != action.stage:
                    gaps[min(need.stage, action.stage), action.work == "F"].append(start - spans[need][1])
    hops = []
    for stage, (rank, after) in enumerate(zip(timeline.rank_of, timeline.rank_of[1:])):
        there, back = (min(gaps[stage, forward], default=0.0) for forward in (True, False))
        hops.append(0.0 if rank == after else max(0.0, (there + back) / 2))
    return tuple(hops)
