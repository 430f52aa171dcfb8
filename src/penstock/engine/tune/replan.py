"""An elastic pipeline: stages are timed while they run, and when they drift the schedule is made again, and the split of layers if that pays.

After every step each rank knows the median time of each work of its stages; the median over the last `WINDOW` steps is taken, so that one late
step moves nothing, and of a stage's replicas the slowest. What counts is each rank's share of the whole, since a pipeline that becomes slower
everywhere needs no other schedule.

    first      a plan was made from FLOPs; as soon as times are known it is made again from them
    drift      some rank's share has changed by more than `pipeline.drift` since the plan was made

Then the lead rank plans twice, with the stages as they are and with layers split anew (`stage_times.py` tells costly layers from slow ranks).
The better by simulation is taken up between two steps: a schedule by all ranks at once, a split by handing weights, moments and averages over
(`engine/transition.py`). A gain below `WORTH` changes nothing, and a change that made steps slower is taken back. What was seen, what was changed
and the throughput before, during and after stand in the run's events. The mathematics stays: same batches, same sums.

Cost: one small all-reduce a step; a plan takes up to seconds on the lead rank. When not to use it: with another schedule than auto, which is the
user's word.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import fields
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch

from penstock.engine.pipeline import Pipeline
from penstock.engine.state import Progress
from penstock.engine.transition import StateMap, carry_state
from penstock.engine.tune.micro import restart_micro
from penstock.parallel.pipeline.plan import PipelinePlan, plan_pipeline
from penstock.parallel.pipeline.schedule import Costs
from penstock.parallel.pipeline.stage_times import measured_layer_costs
from penstock.parallel.pipeline.trace import write_trace
from penstock.plan.pipeline import layer_costs

if TYPE_CHECKING:
    from penstock.engine.build import Core, Parts

#: Steps whose median counts, and steps at the start that do not.
WINDOW, WARM_UP = 5, 2
#: Least gain of a new schedule, and of a new split of layers over a new schedule, to be taken up.
WORTH, WORTH_MOVING = 0.02, 0.03


class Watch:
    """What the stages took lately, and against which the present plan was made."""

    def __init__(self) -> None:
        self._times: deque[torch.Tensor] = deque(maxlen=WINDOW)
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        #: Each rank's share of the work when the plan was taken up; none before that has been seen.
        self._shares: list[float] | None = None
        self._skip, self._transfer, self._planned, self._count = WARM_UP, 0.0, False, 0
        #: Since when something differs, in words; the plan is made from the steps after.
        self._noticed: str | None = None
        self._usual: deque[float] = deque(maxlen=4 * WINDOW)
        #: The plan before the last change, what its steps took, and each rank's share of the work under it.
        self._last: tuple[PipelinePlan, float, list[float]] | None = None

    def after_step(self, parts: Parts, seconds: float) -> None:
        """Take in the step that was taken; plan again if that is due. All ranks must call it."""
        pipeline, every = parts.pipeline, self.every(parts)
        if pipeline is not None and parts.progress.step == parts.config.pipeline.trace:
            timeline = pipeline.timeline(parts.progress.step)
            if parts.world.is_lead:
                write_trace(timeline, parts.run.path / f"pipeline-step-{parts.progress.step}.json")
        if pipeline is None or not every:
            return
        if pipeline.plan.schedule.micro_batches != self._count:  # other micro-batches, which a plan from estimates runs for now
            self._count = pipeline.plan.schedule.micro_batches
            self._begin_anew()
            self._planned, self._last = False, None
        if self._skip:
            self._skip -= 1
            return
        self._times.append(_own_times(parts, pipeline))
        self._seconds.append(seconds)
        if len(self._times) < WINDOW or parts.progress.step % every:
            return
        if not self._planned:
            self._transfer = pipeline.hop_seconds()
        costs = self._costs(parts, pipeline.plan)
        shares = _shares(costs, pipeline.plan)
        if not self._planned:
            self._change(parts, costs, shares, "the stages' times are known")
        elif self._shares is None:
            self._shares = shares
            self._judge(parts)
        else:
            self._look(parts, costs, shares, seconds)

    def _look(self, parts: Parts, costs: Costs, shares: list[float], seconds: float) -> None:
        """Hold the shares against those of the plan's beginning; what differs is timed for a whole window of its own before it changes anything."""
        assert self._shares is not None
        drift = [now / then - 1 if then else 0.0 for now, then in zip(shares, self._shares)]
        rank = max(range(len(drift)), key=lambda r: abs(drift[r]))
        if abs(drift[rank]) <= parts.config.pipeline.drift:
            self._usual.append(seconds)
            self._noticed = None
        elif self._noticed is None:
            self._noticed = f"since about step {parts.progress.step - WINDOW // 2}"
            self._times.clear()
        else:
            now = shares[rank] / self._shares[rank]
            self._change(parts, costs, shares, f"rank {rank} of the pipeline has {now:.2f} times its share of the work {self._noticed}")

    def every(self, parts: Parts) -> int:
        """Steps between looks at all ranks' times, 0 for never: every step, or where ranks do not wait for each other, once in a while."""
        section = parts.config.pipeline
        if parts.pipeline is None or section.schedule != "auto" or not section.drift or not parts.tuner.settled:
            return 0
        return 1 if parts.late is None else WINDOW

    def _costs(self, parts: Parts, plan: PipelinePlan) -> Costs:
        """Median costs of the present stages in seconds, of each the slowest replica's."""
        stages, own = len(plan.stages.parts), torch.stack(list(self._times)).median(0).values
        times = parts.world.axis.all_reduce(own, "stage_times", maximum=True).tolist()
        forward, input_grad, weight_grad = map(tuple, times)
        return Costs(forward, input_grad, weight_grad, (self._transfer,) * (stages - 1), plan.costs.memory)

    def _change(self, parts: Parts, costs: Costs, shares: list[float], why: str) -> None:
        """Plan for measured `costs` on the lead rank, and take up what is worth it on all."""
        assert parts.pipeline is not None
        old, step = parts.pipeline.plan, parts.progress.step
        words, plan = "", None
        if parts.world.is_lead:
            plan, words = better_plan(parts, costs, self._transfer)
        answer = json.loads(parts.world.share(json.dumps({"plan": plan.as_dict() if plan else None, "words": words})))
        speed = _speed(parts, self._usual or self._seconds), _speed(parts, self._seconds)
        if answer["plan"] is None:
            parts.journal.event(step, "pipeline", f"{why}: {answer['words']}")
        else:
            take_up(parts, PipelinePlan.from_dict(answer["plan"]))
            self._last = old, median(self._seconds), shares
            if self._planned:
                restart_micro(parts)
            text = f"{why}: {answer['words']}; {speed[0]:,.0f} tokens/s before, {speed[1]:,.0f} until now"
            parts.journal.event(step, "pipeline", text)
            parts.journal.say(f"step {step}: {text}")
        self._planned = True
        self._begin_anew()
        if answer["plan"] is None:
            self._shares = shares  # the plan stays, and these are its times

    def _begin_anew(self) -> None:
        """Forget what was timed: the next steps are other ones."""
        self._shares, self._noticed, self._skip = None, None, WARM_UP
        self._times.clear()
        self._seconds.clear()
        self._usual.clear()

    def _judge(self, parts: Parts) -> None:
        """Say what the last change brought; go back where steps became slower by it, whatever the simulator said."""
        if self._last is None:
            return
        (old, took, shares), self._last = self._last, None
        takes, took = (max(parts.world.gather_numbers(value, "pipeline")) for value in (median(self._seconds), took))
        text = f"{_speed(parts, [takes]):,.0f} tokens/s since the change"
        if takes > took * (1 + WORTH_MOVING):
            text += f", slower than the {_speed(parts, [took]):,.0f} before it: the plan before is taken up again"
            take_up(parts, old)
            self._begin_anew()
            self._shares = shares
        parts.journal.event(parts.progress.step, "pipeline", text)
        parts.journal.say(f"step {parts.progress.step}: {text}")


def better_plan(parts: Core, costs: Costs, transfer: float) -> tuple[PipelinePlan | None, str]:
    """The plan to go on with under measured `costs` (seconds), None for the present one, and what is to be said of it."""
    assert parts.pipeline is not None
    config, layout, old = parts.config, parts.layout, parts.pipeline.plan
    found = measured_layer_costs(old.stages.parts, costs, layer_costs(config, layout, parts.micro), old.stages.rank_of)
    again = partial(plan_pipeline, config.model, config.pipeline, layout.pipeline, old.schedule.micro_batches)
    now = old.timed(costs)
    same = again(found.costs, old.stages, transfer, found.slowness).timed(costs)
    split = again(found.costs, None, transfer, found.slowness)
    best = split if split.step < (1 - WORTH_MOVING) * same.step else same
    gain = 1 - best.step / now.step
    if gain < WORTH:
        return None, f"the schedule stays, as no other is {WORTH:.0%} faster (bubble {now.bubble:.1%})"
    moved = f", layers {_layers(old)} to {_layers(best)}" if best.stages != old.stages else ""
    return best, f"schedule made again{moved}, bubble {now.bubble:.1%} to {best.bubble:.1%}, {gain:.0%} faster by simulation"


def take_up(parts: Core, plan: PipelinePlan) -> None:
    """Go on with a plan, between two steps; all ranks must call it."""
    assert parts.pipeline is not None
    if plan.stages == parts.pipeline.plan.stages:
        parts.pipeline.take_up(plan)
    else:
        move_layers(parts, plan)


def move_layers(parts: Core, plan: PipelinePlan) -> None:
    """Take up a plan whose stages have other layers: build this rank's parts anew, and hand the state over."""
    from penstock.engine.build import build_core  # (a core builds the watch's parts, and the watch a core)

    old, before = parts.tensors(), StateMap.of(parts)
    saved = Progress(slots=parts.placer.numbers(), micro=parts.tuner.size, exchange=parts.chooser.numbers())
    fresh = build_core(parts.config, parts.world, parts.plan, parts.stop, print, saved, plan)
    missing = carry_state(fresh, before, {parts.world.rank: old}, {rank: (rank,) for rank in range(parts.world.size)})
    assert not missing, f"a move of layers lost {missing}"
    assert parts.pipeline is not None and fresh.pipeline is not None
    fresh.pipeline.compile_as(parts.pipeline)
    for field in fields(fresh):
        if field.name not in ("timer", "tuner", "balancer", "chooser", "notes", "inbox", "probes"):
            setattr(parts, field.name, getattr(fresh, field.name))


def _own_times(parts: Core, pipeline: Pipeline) -> torch.Tensor:
    """Median seconds of each work of this rank's stages, (3, stages), zeros elsewhere; B is divided as the plan divides it."""
    plan = pipeline.plan
    took: dict[tuple[str, int], list[float]] = {}
    for action, start, end in pipeline.spans():
        took.setdefault((action.work, action.stage), []).append(end - start)
    times = torch.zeros(3, len(plan.stages.parts), dtype=torch.float64, device=parts.world.device)
    for (work, stage), seconds in took.items():
        typical = median(seconds)
        if work == "B":
            both = plan.costs.input_grad[stage] + plan.costs.weight_grad[stage]
            share = plan.costs.input_grad[stage] / both if both else 1.0
            times[1, stage], times[2, stage] = typical * share, typical * (1 - share)
        else:
            times["FIW".index(work), stage] = typical
    return times


def _shares(costs: Costs, plan: PipelinePlan) -> list[float]:
    """Each rank's part of all the work, times the number of ranks."""
    ranks = plan.schedule.ranks
    work = [costs.work_of([stage for stage, where in enumerate(plan.stages.rank_of) if where == rank]) for rank in range(ranks)]
    return [ranks * own / sum(work) for own in work]


def _layers(plan: PipelinePlan) -> str:
    return "/".join(str(len(part.layers)) for part in plan.stages.parts)


def _speed(parts: Core, seconds: deque[float] | list[float]) -> float:
    """Tokens per second of steps that took so long, by their median."""
    return parts.config.batch.global_ * parts.config.model.context / median(seconds) if seconds else 0.0
