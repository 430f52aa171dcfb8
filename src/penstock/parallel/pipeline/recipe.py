"""How a schedule is made: the times a dispatcher plans with and the rules it goes by, as data that the search can change."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from penstock.parallel.pipeline.dispatch import Pipe, Rows

UNLIMITED = 1_000_000_000  # micro-batches in hand of a stage that only memory limits
RULES = 5  # of preference

Orders = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Recipe:
    """Factors on each stage's F, I and W times and on transfers; the share of memory to use; the dispatcher's rules; see `Dispatch`."""

    factors: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    transfer: float
    share: float
    orders: Orders
    limits: tuple[int, ...]
    overrun: float


@dataclass(frozen=True)
class Found:
    """A schedule with its score (less is better) and the recipe that made it."""

    score: float
    rows: Rows
    recipe: Recipe


def preference(pipe: Pipe, rule: int) -> Orders:
    """Each rank's preference by one of five rules; kinds as in `Dispatch`.

    0: forwards that lack room make room, then come input gradients, earlier stages first; 1: the same without making room;
    2: input gradients, earlier stages first, before forwards; 3: input gradients, later stages first, before forwards;
    4: weight gradients, then input gradients, then forwards, for when memory is short.
    """
    orders = []
    for own in pipe.own:
        late = own[::-1]
        forwards = [(0, s) for s in late]
        orders.append(
            (
                [(kind, s) for s in late for kind in (0, 2)] + [(1, s) for s in own],
                forwards + [(1, s) for s in own],
                [(1, s) for s in own] + forwards,
                [(1, s) for s in late] + forwards,
                [(kind, s) for kind in (3, 1) for s in late] + forwards,
            )[rule]
        )
    return tuple(map(tuple, orders))


def shared_limits(pipe: Pipe) -> tuple[int, ...]:
    """Micro-batches in hand of every stage so that a rank's memory is shared in proportion to how long each of its stages holds one.

    By Little's law that is what a steady flow needs; a stage holds a micro-batch at least through all later forwards and input gradients.
    """
    costs, stages = pipe.costs, len(pipe.rank_of)
    later = accumulate(costs.forward[s] + costs.input_grad[s] + 2 * pipe.hops[s] for s in reversed(range(stages)))
    life = [time + costs.weight_grad[s] for s, time in zip(range(stages), reversed(list(later)))]
    limits = [1] * stages
    for own, full in zip(pipe.own, pipe.full):
        room = pipe.cap - full + 1e-9
        while fitting := [s for s in own if costs.memory[s] <= room and limits[s] < pipe.micros]:
            most = max(fitting, key=lambda s: life[s] / limits[s])
            limits[most] += 1
            room -= costs.memory[most]
    return tuple(limits)
