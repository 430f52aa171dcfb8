"""Whether a schedule can be run: complete, on the right ranks, in a possible order, free of deadlock, and within a memory cap.

Every stage must do F once for every micro-batch, and then either B, or I and later W. A rank takes its actions strictly in order, so an action
waits for the action before it on its rank and for the data it works on (`needs`); the schedule is free of deadlock if and only if these two
relations together form no circle. What a rank holds at its peak follows from its own order alone: a micro-batch of a stage is held from the start
of its F to the end of its W or B. Costs: linear in the actions (100,000 of them: about 0.3 s). What it does not prove: that a transport delivers
messages in any order; the runtime pairs sends and receives by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.config import ConfigError
from penstock.parallel.pipeline.schedule import Action, Costs, Schedule

#: Relative tolerance of the cap: memory is a sum of fractions.
SLACK = 1e-9


class ScheduleError(ConfigError):
    """A schedule that cannot be run, or that a kind cannot make; the message names the action and the rank."""


def check_schedule(schedule: Schedule, memory: Sequence[float] | Costs | None = None, cap: float | None = None) -> None:
    """Raise `ScheduleError`, in one sentence that names the first fault, unless `schedule` can be run.

    `memory` is what a micro-batch of each stage holds, in units of one rank's share (none: 1 / chunks each); `cap` is the most a rank may hold, as a
    multiple of what 1F1B's first rank holds, which is as many units as there are ranks.
    """
    _check_places(schedule)
    _check_counts(schedule)
    _check_order(schedule)
    circle = find_circle(schedule)
    if circle:
        raise ScheduleError(f"actions wait for each other: {circle}; change their order")
    if cap is not None:
        _check_cap(schedule, memory, cap)


def peak_memory(schedule: Schedule, memory: Sequence[float] | Costs | None = None) -> tuple[float, ...]:
    """What each rank holds at its peak, in the units of `memory` (none: of one rank's share of a micro-batch)."""
    return tuple(most for most, _ in _peaks(schedule, memory))


def needs(action: Action, split: frozenset[tuple[int, int]], last: int) -> list[Action]:
    """The actions whose results `action` works on; `split` are the (stage, micro) whose backward is I and W, `last` the last stage."""
    work, s, micro = action
    if work == "F":
        return [Action("F", s - 1, micro)] if s else []
    if work == "W":
        return [Action("I", s, micro)]
    later = [Action("I" if (s + 1, micro) in split else "B", s + 1, micro)] if s < last else []
    return [Action("F", s, micro), *later]


def split_backwards(schedule: Schedule) -> frozenset[tuple[int, int]]:
    """The (stage, micro) whose backward is I and W, not B."""
    return frozenset((stage, micro) for row in schedule.actions for work, stage, micro in row if work == "I")


def find_circle(schedule: Schedule) -> str:
    """The circle of actions that wait for each other, told as a clause; empty if there is none. Takes a complete schedule."""
    split, last = split_backwards(schedule), schedule.stages - 1
    at = [0] * schedule.ranks
    done: set[Action] = set()
    waiting: dict[Action, list[int]] = {}
    free = list(range(schedule.ranks))
    while free:
        rank = free.pop()
        row = schedule.actions[rank]
        while at[rank] < len(row):
            missing = next((need for need in needs(row[at[rank]], split, last) if need not in done), None)
            if missing is not None:
                waiting.setdefault(missing, []).append(rank)
                break
            action = row[at[rank]]
            done.add(action)
            at[rank] += 1
            free += waiting.pop(action, [])
    blocked = {rank: need for need, ranks in waiting.items() for rank in ranks}
    return _told_circle(schedule, at, blocked) if blocked else ""


def _told_circle(schedule: Schedule, at: list[int], blocked: dict[int, Action]) -> str:
    """Follow each blocked rank to the rank that should do what it needs, until one comes again."""
    path, rank = [], min(blocked)
    while rank not in path:
        path.append(rank)
        rank = schedule.rank_of[blocked[rank].stage]
    clauses = []
    for stuck in path[path.index(rank) :]:
        need = blocked[stuck]
        other = schedule.rank_of[need.stage]
        clauses.append(f"{schedule.actions[stuck][at[stuck]]} needs {need}, which rank {other} does after {schedule.actions[other][at[other]]}")
    return "; ".join(clauses)


def _check_places(schedule: Schedule) -> None:
    """Every action works on a stage and a micro-batch there are, on the rank that holds the stage."""
    if not schedule.actions or not schedule.rank_of or schedule.micro_batches < 1:
        raise ScheduleError("a schedule needs at least one rank, one stage and one micro-batch")
    for stage, rank in enumerate(schedule.rank_of):
        if not 0 <= rank < schedule.ranks:
            raise ScheduleError(f"stage {stage} lies on rank {rank}, and the schedule has ranks 0 to {schedule.ranks - 1}")
    for rank, row in enumerate(schedule.actions):
        for action in row:
            if action.work not in ("F", "I", "W", "B"):
                raise ScheduleError(f"rank {rank}: {action} is no action; the works are F, I, W and B")
            if not 0 <= action.stage < schedule.stages:
                raise ScheduleError(f"rank {rank}: {action} names stage {action.stage}, and there are stages 0 to {schedule.stages - 1}")
            if not 0 <= action.micro < schedule.micro_batches:
                raise ScheduleError(f"rank {rank}: {action} names micro-batch {action.micro}, and there are 0 to {schedule.micro_batches - 1}")
            home = schedule.rank_of[action.stage]
            if home != rank:
                raise ScheduleError(f"rank {rank}: {action} belongs on rank {home}, which holds stage {action.stage}")


def _check_counts(schedule: Schedule) -> None:
    """Each stage does each micro-batch's F once, and either B once or I and W once."""
    seen: set[Action] = set()
    for rank, row in enumerate(schedule.actions):
        for action in row:
            if action in seen:
                raise ScheduleError(f"rank {rank}: {action} is there twice; remove one")
            seen.add(action)
    for stage, rank in enumerate(schedule.rank_of):
        for micro in range(schedule.micro_batches):
            has = {work for work in "FIWB" if (work, stage, micro) in seen}
            if "B" in has and has & {"I", "W"}:
                split = next(work for work in "IW" if work in has)
                raise ScheduleError(f"rank {rank}: {stage}B{micro} is the whole backward, and {stage}{split}{micro} does a part of it again")
            lacking = "".join(work for work in ("F" if "B" in has else "FIW") if work not in has)
            if lacking:
                raise ScheduleError(f"rank {rank}: {_told_missing(lacking, stage, micro)} is missing; add it")


def _told_missing(works: str, stage: int, micro: int) -> str:
    if works == "FIW":
        return f"micro-batch {micro} of stage {stage}"
    names = " and ".join(f"{stage}{work}{micro}" for work in works)
    return f"{stage}B{micro} (or {names})" if works == "IW" else names


def _check_order(schedule: Schedule) -> None:
    """On one stage a micro-batch goes F, then I or B, then W."""
    for rank, row in enumerate(schedule.actions):
        seen: set[Action] = set()
        for action in row:
            work, stage, micro = action
            before = Action("I" if work == "W" else "F", stage, micro)
            if work != "F" and before not in seen:
                raise ScheduleError(f"rank {rank}: {action} stands before {before}, whose result it works on; swap them")
            seen.add(action)


def _check_cap(schedule: Schedule, memory: Sequence[float] | Costs | None, cap: float) -> None:
    allowed = cap * schedule.ranks
    for rank, (most, action) in enumerate(_peaks(schedule, memory)):
        if most > allowed * (1 + SLACK):
            raise ScheduleError(
                f"rank {rank} holds {most:.4g} units at {action}, and the cap of {cap:.4g} × 1F1B's allows {allowed:.4g}; "
                f"raise it to {most / schedule.ranks:.4g}, or change the order"
            )


def _peaks(schedule: Schedule, memory: Sequence[float] | Costs | None) -> list[tuple[float, Action]]:
    """Each rank's peak, and the action that brings it there."""
    if memory is None:
        held_by: Sequence[float] = [1.0 / schedule.chunks] * schedule.stages
    else:
        held_by = memory.memory if isinstance(memory, Costs) else memory
    peaks = []
    for row in schedule.actions:
        held, most, at = 0.0, 0.0, row[0] if row else Action("F", 0, 0)
        for action in row:
            if action.work == "F":
                held += held_by[action.stage]
                if held > most * (1 + SLACK):
                    most, at = held, action
            elif action.work != "I":
                held -= held_by[action.stage]
        peaks.append((most, at))
    return peaks
