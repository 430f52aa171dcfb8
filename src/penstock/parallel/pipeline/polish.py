"""A schedule made better by small changes of order, each aimed at a place where a rank waits.

Only forwards and input gradients are moved; weight gradients are placed anew after every change (`fill_weights`). A wait is drawn, long ones and
those of the slowest rank more often, and traced back to an action that its own rank held up: that one is taken a few places earlier. Or the
waiting rank takes its next action first. What does not harm is kept. It costs one `fill_weights` a trial, less than half a microsecond an action,
and finds what dispatching by rules cannot: exceptions to them. It does not get far from where it begins.
"""

from __future__ import annotations

import random

from penstock.parallel.pipeline.dispatch import Code, Pipe, Rows, fill_weights

HASTE = 1e-3  # how much the mean of all ranks counts beside the slowest: it tells two equally slow schedules apart
OVERRUNS = (0.0, 0.25, 0.5, 0.75, 1.0)


def score(first: list[float], ends: list[float], barrier: bool) -> float:
    """How bad a schedule is whose ranks begin and end so: its makespan, or its longest span, and a little of the others'.

    Without a barrier all of the next step may follow one step's longest span later, so the period is no more than that.
    """
    taken = _taken(first, ends, barrier)
    return max(taken) + HASTE * sum(taken) / len(taken)


def _taken(first: list[float], ends: list[float], barrier: bool) -> list[float]:
    return ends if barrier else [end - start for start, end in zip(first, ends)]


class Polish:
    """A schedule under change; `run` changes it."""

    def __init__(self, pipe: Pipe, rows: Rows, overrun: float, barrier: bool, seed: int = 0) -> None:
        self.pipe, self.barrier, self.overrun = pipe, barrier, overrun
        self.random = random.Random(seed)
        self.orders = [[code for code in row if code[0] < 2] for row in rows]
        self.rows, self.score = rows, float("inf")
        self.waits: dict[Code, float] = {}
        self.slowest = 0
        self.accept(overrun)

    def run(self, trials: int) -> Rows:
        """Try so many changes; returns the rows, weight gradients included."""
        for _ in range(trials):
            if not self.waits:
                break
            move = self.move()
            if move is None:
                continue
            rank, old, new = move
            order = self.orders[rank]
            if not may_pass(order, old, new):
                continue
            self.orders[rank] = [*order[:new], order[old], *order[new:old], *order[old + 1 :]]
            if not self.accept(self.overrun if self.random.random() < 0.9 else self.random.choice(OVERRUNS)):
                self.orders[rank] = order
        return self.rows

    def accept(self, overrun: float) -> bool:
        """Take the orders as they are if they can be kept and are no worse."""
        waits: dict[Code, float] = {}
        filled = fill_weights(self.pipe, self.orders, overrun, waits)
        if filled is None:
            return False
        rows, first, ends = filled
        new = score(first, ends, self.barrier)
        if new > self.score:
            return False
        taken = _taken(first, ends, self.barrier)
        self.rows, self.score, self.waits, self.overrun, self.slowest = rows, new, waits, overrun, taken.index(max(taken))
        return True

    def move(self) -> tuple[int, int, int] | None:
        """A rank, the place of one of its actions, and the earlier place where it may go."""
        rank_of = self.pipe.rank_of
        waiting = list(self.waits)
        code = self.random.choices(waiting, [self.waits[c] * (4 if rank_of[c[1]] == self.slowest else 1) for c in waiting])[0]
        if self.random.random() < 0.3:
            rank = rank_of[code[1]]
            place = self.orders[rank].index(code)
            return (rank, place + 1, place) if place + 1 < len(self.orders[rank]) else None
        cause = self.needed(code)
        while cause in self.waits and self.random.random() < 0.9:
            cause = self.needed(cause)
        rank = rank_of[cause[1]]
        place = self.orders[rank].index(cause)
        earlier = max(0, place - self.random.choice((1, 1, 1, 2, 3)))
        return (rank, place, earlier) if earlier < place else None

    def needed(self, code: Code) -> Code:
        """The action on whose result one waits; a forward on stage 0 never does."""
        kind, s, micro = code
        if kind == 0:
            return 0, s - 1, micro
        return (1, s + 1, micro) if s + 1 < len(self.pipe.rank_of) else (0, s, micro)


def may_pass(order: list[Code], old: int, new: int) -> bool:
    """Whether an action may go from one place to an earlier one: past no micro-batch before it, and no forward of its own."""
    kind, s, micro = order[old]
    return not any(other == s and (its == kind or (its == 0 and which == micro)) for its, other, which in order[new:old])
