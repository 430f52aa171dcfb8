"""Schedules made for measured times: for any costs, wiring and memory cap, by search; and the choice among wirings and the named kinds.

`synthesise` makes one for stages as they lie on ranks (search.py says how, bounds.py what no search can reach); `best_schedule` tries several
numbers of chunks and compares with ready schedules, such as the named kinds, the best of which it polishes (polish.py), so that it is never
worse than any. Both are pure functions: the same question has the same answer. Costs: under a second for 8 ranks × 32
micro-batches × 2 chunks, and ten for 64 × 256; `effort` multiplies it where a schedule is worth it. When not to use them: equal times of F, I
and W, no transfers and no barrier, where zb-v is perfect and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from penstock.config import ConfigError
from penstock.parallel.pipeline.bounds import least_memory, makespan_bound, period_bound
from penstock.parallel.pipeline.dispatch import TINY, Pipe, Rows, fill_weights
from penstock.parallel.pipeline.polish import OVERRUNS, Polish, score
from penstock.parallel.pipeline.schedule import Action, Costs, Schedule, wire
from penstock.parallel.pipeline.search import BUDGET, Search
from penstock.parallel.pipeline.simulate import Timing, simulate

WORKS = "FIW"
POLISHED = 2  # ready schedules that are polished, the best


@dataclass(frozen=True)
class Choice:
    """A schedule, the costs of its stages, its times by them, and the time that no schedule on these stages can beat."""

    schedule: Schedule
    costs: Costs
    timing: Timing
    bound: float


def synthesise(
    costs: Costs, rank_of: tuple[int, ...], micro_batches: int, cap: float | None = 1.0, barrier: bool = True, effort: float = 1.0
) -> Schedule:
    """A schedule of kind "auto" for these costs that holds at most `cap` of what 1F1B's first rank holds: cap × ranks units of `costs.memory`.

    With `barrier` the makespan is made small, else the time per step in the long run. `effort` multiplies the time that the search takes.
    Raises `ConfigError` if the cap is below what any schedule needs, saying the least, or the ranks are not numbered from 0 without a gap.
    """
    pipe = _pipe(costs, rank_of, micro_batches, cap)
    schedules = [_schedule(pipe, rows) for rows in Search(pipe, barrier, effort).best()]
    return schedules[0] if barrier or len(schedules) == 1 else min(schedules, key=lambda schedule: simulate(schedule, costs).period)


def polished(schedule: Schedule, costs: Costs, cap: float | None = 1.0, barrier: bool = True, effort: float = 1.0) -> Schedule | None:
    """A schedule made from another for these costs, of kind "auto": its weight gradients placed anew, and waits mended; see `synthesise`.

    None if its order cannot be kept within the cap. It may turn out worse than the schedule itself.
    """
    pipe = _pipe(costs, schedule.rank_of, schedule.micro_batches, cap)
    rows = [[(0 if work == "F" else 1, s, micro) for work, s, micro in actions if work != "W"] for actions in schedule.actions]
    made = []
    for overrun in OVERRUNS:
        filled = fill_weights(pipe, rows, overrun)
        if filled is not None:
            made.append((score(*filled[1:], barrier), overrun))
    if not made:
        return None
    trials = int(effort * BUDGET / (3 * schedule.stages * schedule.micro_batches))
    return _schedule(pipe, Polish(pipe, rows, min(made)[1], barrier).run(trials))


def best_schedule(
    costs_of: Callable[[tuple[int, ...]], Costs],
    ranks: int,
    micro_batches: int,
    cap: float | None = 1.0,
    barrier: bool = True,
    chunks: Iterable[int] = (2, 4),
    candidates: Iterable[Schedule] = (),
    effort: float = 1.0,
) -> Choice:
    """The best of the synthesised schedules, with each of the numbers of `chunks` in a wave, and of the `candidates`, within the cap.

    `costs_of` gives the costs of stages that lie on the given ranks. Raises `ConfigError` if no wiring fits the cap, saying the least that one needs.
    """

    def time(choice: Choice) -> float:
        return choice.timing.step(barrier)

    found: list[Choice] = []
    wirings = [wire(ranks, count, "wave") for count in dict.fromkeys(chunks)]
    needed = [least_memory(costs_of(rank_of), rank_of) for rank_of in wirings]
    for rank_of, least in zip(wirings, needed):
        if cap is None or least <= cap * ranks + TINY:
            costs = costs_of(rank_of)
            found.append(_choice(synthesise(costs, rank_of, micro_batches, cap, barrier, effort), costs, cap, barrier))
    ready = [_choice(candidate, costs_of(candidate.rank_of), cap, barrier) for candidate in candidates]
    ready = sorted((choice for choice in ready if cap is None or max(choice.timing.peak_memory) <= cap * ranks + TINY), key=time)
    for choice in ready[:POLISHED]:
        better = polished(choice.schedule, choice.costs, cap, barrier, effort)
        found += [_choice(better, choice.costs, cap, barrier)] if better else []
    if not found + ready:
        raise ConfigError(_too_little(cap or 0.0, min(needed, default=float("inf")), ranks))
    return min(ready + found, key=time)


def _choice(schedule: Schedule, costs: Costs, cap: float | None, barrier: bool) -> Choice:
    bound = makespan_bound if barrier else period_bound
    return Choice(schedule, costs, simulate(schedule, costs), bound(costs, schedule.rank_of, schedule.micro_batches, cap))


def _pipe(costs: Costs, rank_of: tuple[int, ...], micro_batches: int, cap: float | None) -> Pipe:
    """The problem, checked."""
    ranks = max(rank_of) + 1
    if set(rank_of) != set(range(ranks)):
        raise ConfigError(f"a pipeline's ranks are numbered from 0 without a gap, and {sorted(set(rank_of))} are not; give every rank a stage")
    if micro_batches < 1:
        raise ConfigError(f"a schedule needs at least one micro-batch, not {micro_batches}")
    least = least_memory(costs, rank_of)
    room = float("inf") if cap is None else cap * ranks
    if room < least - TINY:
        raise ConfigError(_too_little(cap or 0.0, least, ranks))
    return Pipe(costs, rank_of, micro_batches, min(room, micro_batches * least))


def _too_little(cap: float, least: float, ranks: int) -> str:
    return (
        f"no schedule holds as little as {cap:g} of what 1F1B holds: one micro-batch alone takes {least / ranks:.4g} of it on the fullest rank; "
        f"set the memory cap to {least / ranks:.4g} or more"
    )


def _schedule(pipe: Pipe, rows: Rows) -> Schedule:
    actions = tuple(tuple(Action(WORKS[kind], s, micro) for kind, s, micro in row) for row in rows)  # type: ignore[arg-type]
    return Schedule("auto", pipe.rank_of, pipe.micros, actions)
