"""When each action of a pipeline schedule happens, and what follows: makespan, bubble, memory, and the time per step without a barrier.

A discrete-event simulation: each rank takes its actions in order, each as soon as the rank is free and what it needs has arrived:

    F  the F of the stage before, plus the transfer if that stage is on another rank
    I, B  the I or B of the stage after, plus the transfer; on the last stage its own F
    W  its own I

(The forward of the same stage comes before the I by this alone.) Sends and receives occupy nobody. It costs a few microseconds an action.
Asymptotic time per step: without a barrier a rank begins its next step when it has ended its own, so that the times at which the ranks end
a step follow from those at which they ended the one before by a max-plus linear map, whose increments become periodic (Baccelli et al.,
Synchronization and Linearity, 1992, section 3.7); steps are simulated until they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.parallel.pipeline.check import peak_memory
from penstock.parallel.pipeline.schedule import Action, Costs, Schedule

STEPS = 128  # steps simulated at most until the increments repeat; far more than any schedule met here needs (under ten)
CLOSE = 1e-9  # two times are one if they differ by less than this part of a step


@dataclass(frozen=True)
class Timing:
    """What a schedule takes, in the unit of its `Costs`."""

    spans: tuple[tuple[tuple[float, float], ...], ...]
    """Start and end of every action, `spans[rank][position]`; where several steps were asked for, one step's after the other's."""
    makespan: float
    """From the start of the first action to the end of the last over all ranks, of one step that nothing overlaps."""
    work: tuple[float, ...]
    """Busy time of each rank in a step."""
    period: float
    """Time per step in the long run if no barrier parts the steps: each rank begins the next as soon as it has ended its own."""
    peak_memory: tuple[float, ...]
    """The most each rank holds, in units of `Costs.memory`: a stage's micro-batch from the start of its F to the end of its W or B."""

    def step(self, barrier: bool) -> float:
        """The time of a step that counts: makespan with a barrier, period without."""
        return self.makespan if barrier else self.period

    def idle(self, barrier: bool) -> float:
        """The idle part of such a step."""
        return self.bubble if barrier else self.steady_bubble

    @property
    def bubble(self) -> float:
        """The idle part of all ranks' time between barriers."""
        return 1.0 - sum(self.work) / (len(self.work) * self.makespan) if self.makespan else 0.0

    @property
    def steady_bubble(self) -> float:
        """The idle part of all ranks' time without barriers."""
        return 1.0 - sum(self.work) / (len(self.work) * self.period) if self.period else 0.0


def simulate(schedule: Schedule, costs: Costs, steps: int = 1) -> Timing:
    """Time a schedule; `spans` shows `steps` steps without a barrier. Raises ValueError naming the actions that wait for each other for ever."""
    program = _Program(schedule, costs)
    free = [0.0] * schedule.ranks
    starts, free = program.step(free)
    program.check(starts)
    laid, ends = list(starts), [free]
    makespan = max(free) - min((s[0] for s in starts if s), default=0.0)
    work = tuple(sum(durations) for durations in program.durations)
    while len(ends) < steps or (len(ends) < STEPS and _increment(ends) is None):
        starts, free = program.step(free)
        ends.append(free)
        if len(ends) <= steps:
            laid = [old + new for old, new in zip(laid, starts)]
    period = _increment(ends)
    if period is None:
        half = len(ends) // 2
        period = max((last - middle) / (len(ends) - 1 - half) for last, middle in zip(ends[-1], ends[half]))
    spans = tuple(tuple((t, t + d) for t, d in zip(ts, durations * steps)) for ts, durations in zip(laid, program.durations))
    return Timing(spans, makespan, work, period, peak_memory(schedule, costs))


class _Program:
    """A schedule with its durations, each action's one remaining dependency and the delay after it, ready to be timed again and again."""

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        self.schedule = schedule
        self.micros = max((a.micro for actions in schedule.actions for a in actions), default=0) + 1
        self.durations = [[costs.of(action) for action in actions] for actions in schedule.actions]
        self.needs = [[self._need(action) for action in actions] for actions in schedule.actions]
        self.slots = [[self._slot(action) for action in actions] for actions in schedule.actions]
        hops = [costs.transfer[s] if a != b else 0.0 for s, (a, b) in enumerate(zip(schedule.rank_of, schedule.rank_of[1:]))]
        self.delays = [[self._delay(action, hops) for action in actions] for actions in schedule.actions]

    def _slot(self, action: Action) -> int:
        """Where the end of an action is noted: forwards first, then input gradients, then (never waited for) weight gradients."""
        kind = 0 if action.work == "F" else 2 if action.work == "W" else 1
        return (kind * self.schedule.stages + action.stage) * self.micros + action.micro

    def _need(self, action: Action) -> int:
        """The slot that an action waits for, or -1."""
        work, stage, micro = action
        if work == "F":
            return -1 if stage == 0 else self._slot(Action("F", stage - 1, micro))
        if work == "W":
            return self._slot(Action("I", stage, micro))
        last = stage == self.schedule.stages - 1
        return self._slot(Action("F", stage, micro) if last else Action("I", stage + 1, micro))

    def _delay(self, action: Action, hops: list[float]) -> float:
        """The time from the end of what an action needs until it is there."""
        work, stage, _ = action
        if work == "F":
            return hops[stage - 1] if stage else 0.0
        return hops[stage] if work != "W" and stage < len(hops) else 0.0

    def step(self, free: list[float]) -> tuple[list[list[float]], list[float]]:
        """Start times per rank of one step whose ranks are free at the given times, and when they are free again."""
        ends: list[float | None] = [None] * (3 * self.schedule.stages * self.micros)
        free = list(free)
        starts: list[list[float]] = [[] for _ in free]
        waiting: dict[int, list[int]] = {}
        ready = list(range(len(free)))
        while ready:
            rank = ready.pop()
            time, needs, durations = free[rank], self.needs[rank], self.durations[rank]
            slots, delays, begun = self.slots[rank], self.delays[rank], starts[rank]
            for at in range(len(begun), len(needs)):
                need = needs[at]
                if need >= 0:
                    end = ends[need]
                    if end is None:
                        waiting.setdefault(need, []).append(rank)
                        break
                    time = max(time, end + delays[at])
                begun.append(time)
                time += durations[at]
                ends[slots[at]] = time
                if slots[at] in waiting:
                    ready += waiting.pop(slots[at])
            free[rank] = time
        return starts, free

    def check(self, starts: list[list[float]]) -> None:
        """Raise ValueError if a rank did not come to the end of its list."""
        stuck = [(rank, self.schedule.actions[rank][len(s)]) for rank, s in enumerate(starts) if len(s) < len(self.needs[rank])]
        if stuck:
            told = ", ".join(f"{action} on rank {rank}" for rank, action in stuck)
            raise ValueError(f"deadlock: these actions wait for each other or for one that is missing: {told}")


def _increment(ends: list[list[float]]) -> float | None:
    """Time per step once all ranks' ends have moved by one amount since some step before, else None."""
    for back in range(1, min(len(ends), len(ends[0]) + 1)):
        moved = [now - then for now, then in zip(ends[-1], ends[-1 - back])]
        if max(moved) - min(moved) <= CLOSE * max(moved):
            return sum(moved) / len(moved) / back
    return None
