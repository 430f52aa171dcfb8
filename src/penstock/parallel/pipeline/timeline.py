"""A pipeline step as it happened, or as it would: when every action began and ended on every rank, and what that says about costs.

`timeline_of` takes it from the simulator, the runtime from its clocks, `read_trace` from a file. `measured_costs` turns it back into the costs a
schedule is made from, so that a run tells what its schedule should have been:

    forward, input_grad, weight_grad   the median time of a stage's F, I and W over micro-batches and steps
    B                                  where a stage has no W of its own, B's median is split as I and W of all other stages together, else in halves
    transfer                           the least time from an end to a start that waited for it (its rank idled before), the mean of both directions.
                                       A hop that nobody waited for is taken to be the typical one, or less where its own gaps show it to be;
                                       0 within a rank

Medians, since one late message or collection of garbage should not count; a machine that changes within the timeline is not seen by them. All
ranks' times must be of one clock: what two clocks differ by would count as transfer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import NamedTuple

from penstock.parallel.pipeline.check import needs, split_backwards
from penstock.parallel.pipeline.schedule import Action, Costs, Schedule
from penstock.parallel.pipeline.simulate import Timing

#: A rank idled before an action if it had nothing to do for more than this part of the timeline.
IDLE = 1e-9


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
    """The time from an end to its arrival, for each pair of neighbouring stages."""
    most, waited = _gaps(timeline)
    known: dict[int, float] = {}
    hops = [s for s, (rank, after) in enumerate(zip(timeline.rank_of, timeline.rank_of[1:])) if rank != after]
    for s in hops:
        seen = [waited[s, forward] for forward in (True, False) if (s, forward) in waited]
        if seen:
            known[s] = max(0.0, sum(seen) / len(seen))
    typical = median(known.values()) if known else 0.0
    guess = {s: max(0.0, min(typical, most[s, True], most[s, False])) for s in hops}
    return tuple((guess | known).get(s, 0.0) for s in range(len(timeline.rank_of) - 1))


def _gaps(timeline: Timeline) -> tuple[dict[tuple[int, bool], float], dict[tuple[int, bool], float]]:
    """By hop and direction (forward or not), the least time from an end to the start that needs it: of all, and of those whose rank idled before."""
    split, last = split_backwards(timeline.schedule), len(timeline.rank_of) - 1
    most: dict[tuple[int, bool], float] = defaultdict(lambda: math.inf)
    waited: dict[tuple[int, bool], float] = {}
    idle = timeline.makespan_s * IDLE
    for step in range(timeline.steps):
        ends: dict[Action, float] = {}
        starts: list[tuple[Action, float, float]] = []
        for row in timeline.spans:
            size = len(row) // timeline.steps
            ends |= {action: end for action, _, end in row[step * size : (step + 1) * size]}
            before = -math.inf if step == 0 else row[step * size - 1].end_s
            for action, start, end in row[step * size : (step + 1) * size]:
                starts.append((action, start, before))
                before = end
        for action, start, before in starts:
            for need in needs(action, split, last):
                if need.stage != action.stage:
                    hop = min(need.stage, action.stage), action.work == "F"
                    gap = start - ends[need]
                    most[hop] = min(most[hop], gap)
                    if start - before > idle:
                        waited[hop] = min(waited.get(hop, math.inf), gap)
    return most, waited
