"""One pipeline schedule by dispatching: whenever a rank is free it takes the first action in its order of preference that it may take.

A rank may take an action if its input has arrived, and a forward only if memory allows: after it, the micro-batches in hand must still be able to
end one after the other, oldest first, as a banker lends (Dijkstra, EWD 623), so that no schedule comes to a standstill. Weight
gradients, which nobody waits for, are taken oldest first when nothing else may be. Micro-batches are alike: every stage takes them in order.

`fill_weights` then keeps the order of forwards and input gradients and puts the weight gradients anew where the rank would wait, by other
times than the schedule was made with. Both cost a few microseconds an action.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.parallel.pipeline.schedule import Costs

TINY = 1e-9

Code = tuple[int, int, int]  # kind (0 F, 1 I, 2 W), stage, micro-batch
Rows = list[list[Code]]  # for every rank its actions in order


@dataclass
class Pipe:
    """What is to be scheduled: stages on ranks, micro-batches, times, and the memory each rank may hold."""

    costs: Costs
    rank_of: tuple[int, ...]
    micros: int
    cap: float
    hops: list[float] = field(init=False)
    own: list[list[int]] = field(init=False)
    full: list[float] = field(init=False)

    def __post_init__(self) -> None:
        ranks, stages = max(self.rank_of) + 1, len(self.rank_of)
        pairs = zip(self.rank_of, self.rank_of[1:])
        self.hops = [self.costs.transfer[s] if a != b else 0.0 for s, (a, b) in enumerate(pairs)] + [0.0]
        self.own = [[s for s in range(stages) if self.rank_of[s] == rank] for rank in range(ranks)]
        self.full = [sum(self.costs.memory[s] for s in own) for own in self.own]


class Dispatch:
    """The state of one run; `run` returns the rows.

    `times` may differ from the pipe's: a schedule may be made with other times than it is for. `limits` says how many micro-batches each stage
    may have in hand. `orders` is each rank's preference, (kind, stage) from first to last, where kind 0 and 1 are a stage's forward and input
    gradient; 2 is its weight gradient if its next forward has arrived and lacks room; 3 its weight gradient whenever there is one.
    """

    def __init__(self, pipe: Pipe, times: Costs, orders: Sequence[Sequence[tuple[int, int]]], limits: Sequence[int]) -> None:
        stages = len(pipe.rank_of)
        self.pipe, self.times, self.orders = pipe, times, orders
        self.hops = [times.transfer[s] if pipe.hops[s] else 0.0 for s in range(stages - 1)] + [0.0]
        self.memory = pipe.costs.memory
        self.forwards: list[list[float]] = [[] for _ in range(stages)]  # end times by micro-batch
        self.backwards: list[list[float]] = [[] for _ in range(stages)]
        self.limits = limits
        self.weights = [0] * stages  # weight gradients done
        self.held = [0.0] * len(pipe.own)
        self.rows: Rows = [[] for _ in pipe.own]

    def run(self) -> Rows:
        """Simulate, deciding as time goes."""
        ranks, micros = len(self.rows), self.pipe.micros
        events = [(0.0, rank) for rank in range(ranks)]
        free, asleep = [0.0] * ranks, [False] * ranks
        goal = [3 * micros * len(own) for own in self.pipe.own]
        while events:
            now, rank = heapq.heappop(events)
            if now < free[rank] - TINY or len(self.rows[rank]) == goal[rank]:
                continue
            code = self.choose(rank, now + TINY)
            asleep[rank] = code is None
            if code is None:
                wake = self.next_arrival(rank, now + TINY)
                if wake is not None:
                    heapq.heappush(events, (wake, rank))
                continue
            free[rank], told = self.take(rank, code, now)
            heapq.heappush(events, (free[rank], rank))
            if told is not None and asleep[told[1]]:
                heapq.heappush(events, told)
        return self.rows

    def choose(self, rank: int, now: float) -> Code | None:
        """The action to take, or None to wait."""
        last, micros, hops = len(self.weights) - 1, self.pipe.micros, self.hops
        forwards, backwards, weights = self.forwards, self.backwards, self.weights
        for kind, s in self.orders[rank]:
            if kind == 1:
                micro = len(backwards[s])
                if micro < len(forwards[s]) and (s == last or (micro < len(backwards[s + 1]) and backwards[s + 1][micro] + hops[s] <= now)):
                    return 1, s, micro
                continue
            if kind == 3:
                if weights[s] < len(backwards[s]):
                    return 2, s, weights[s]
                continue
            micro = len(forwards[s])
            if micro < micros and (not s or (micro < len(forwards[s - 1]) and forwards[s - 1][micro] + hops[s - 1] <= now)):
                fits = micro < weights[s] + self.limits[s] and self.safe(rank, s, micro)
                if kind == 0 and fits:
                    return 0, s, micro
                if kind == 2 and not fits and weights[s] < len(backwards[s]):
                    return 2, s, weights[s]
        oldest, found = now, None
        for s in self.pipe.own[rank]:
            if weights[s] < len(backwards[s]) and backwards[s][weights[s]] <= oldest:
                oldest, found = backwards[s][weights[s]], (2, s, weights[s])
        return found

    def next_arrival(self, rank: int, now: float) -> float | None:
        """When an input arrives that is under way."""
        times = []
        for s in self.pipe.own[rank]:
            micro = len(self.backwards[s])
            if s < len(self.weights) - 1 and micro < len(self.backwards[s + 1]):
                times.append(self.backwards[s + 1][micro] + self.hops[s])
            micro = len(self.forwards[s])
            if s and micro < len(self.forwards[s - 1]):
                times.append(self.forwards[s - 1][micro] + self.hops[s - 1])
        return min((t for t in times if t > now), default=None)

    def take(self, rank: int, code: Code, now: float) -> tuple[float, tuple[float, int] | None]:
        """Note an action; returns its end, and when its result is on which rank."""
        kind, s, _ = code
        self.rows[rank].append(code)
        if kind == 0:
            end = now + self.times.forward[s]
            self.forwards[s].append(end)
            self.held[rank] += self.memory[s]
            return end, (end + self.hops[s], self.pipe.rank_of[s + 1]) if s + 1 < len(self.weights) else None
        if kind == 1:
            end = now + self.times.input_grad[s]
            self.backwards[s].append(end)
            return end, (end + self.hops[s - 1], self.pipe.rank_of[s - 1]) if s else None
        self.weights[s] += 1
        self.held[rank] -= self.memory[s]
        return now + self.times.weight_grad[s], None

    def safe(self, rank: int, stage: int, micro: int) -> bool:
        """Whether after this forward every micro-batch up to its own could still be ended in turn with the memory there is."""
        room = self.pipe.cap - self.held[rank] - self.memory[stage] + TINY
        if room < 0 or room >= self.pipe.full[rank]:
            return room >= 0
        done = [(self.memory[s], len(self.forwards[s]) + (s == stage), self.weights[s]) for s in self.pipe.own[rank]]
        oldest = min(weights for _, _, weights in done)
        for turn in {oldest, *(forwards for _, forwards, _ in done)}:
            if oldest <= turn <= micro:
                wanted, back = 0.0, room
                for memory, forwards, weights in done:
                    if forwards <= turn:
                        wanted += memory
                        if forwards > weights:
                            back += memory * (forwards - weights)
                    elif turn > weights:
                        back += memory * (turn - weights)
                if wanted > back:
                    return False
        return True


Filled = tuple[Rows, list[float], list[float]]  # rows, and when each rank begins and ends


def fill_weights(pipe: Pipe, rows: Rows, overrun: float, waits: dict[Code, float] | None = None) -> Filled | None:
    """Place weight gradients anew between forwards and input gradients, whose order stays.

    One is taken where the next forward lacks memory, or its rank would wait and it would end at most `overrun` of its time too late.
    Returns the rows, and when each rank begins and ends; `waits` takes in how long a rank waits for which action, the first of a rank apart.
    Returns None if the order of the rest cannot be kept: ranks wait for each other, or memory is held by what cannot be ended yet.
    """
    fill = _Fill(pipe, [[code for code in row if code[0] < 2] for row in rows], overrun, waits)
    while fill.ready:
        if not fill.advance(fill.ready.pop()):
            return None
    if any(place < len(sequence) for place, sequence in zip(fill.at, fill.sequences)):
        return None
    ends = [time + sum(pipe.costs.weight_grad[s] for s, _ in rest) for time, rest in zip(fill.free, fill.pending)]
    return [row + [(2, s, micro) for s, micro in rest] for row, rest in zip(fill.made, fill.pending)], fill.first, ends


class _Fill:
    """The state of `fill_weights`: each rank goes on until it needs what is not known yet."""

    def __init__(self, pipe: Pipe, sequences: Rows, overrun: float, waits: dict[Code, float] | None) -> None:
        ranks, stages = len(sequences), len(pipe.rank_of)
        self.pipe, self.sequences, self.overrun, self.waits = pipe, sequences, overrun, waits
        # When the input of (kind, stage, micro) is there, kept at stage * micros + micro; None: not known yet.
        self.arrivals: list[list[float | None]] = [[None] * (stages * pipe.micros) for _ in range(2)]
        self.arrivals[0][: pipe.micros] = [0.0] * pipe.micros
        self.waiting: dict[Code, int] = {}
        self.made: Rows = [[] for _ in sequences]
        self.first, self.free, self.held = [0.0] * ranks, [0.0] * ranks, [0.0] * ranks
        self.pending = [deque[tuple[int, int]]() for _ in sequences]
        self.at, self.ready = [0] * ranks, list(range(ranks))

    def advance(self, rank: int) -> bool:
        """Go on with a rank; False if a forward finds no memory and there is no weight gradient to give some back."""
        costs, micros, arrivals = self.pipe.costs, self.pipe.micros, self.arrivals
        sequence, pending, made, at, now = self.sequences[rank], self.pending[rank], self.made[rank], self.at[rank], self.free[rank]
        while at < len(sequence):
            code = sequence[at]
            kind, s, micro = code
            arrival = arrivals[kind][s * micros + micro]
            if arrival is None:
                self.waiting[code] = rank
                break
            lacking = kind == 0 and self.held[rank] + costs.memory[s] > self.pipe.cap + TINY
            if lacking and not pending:
                return False
            if lacking or (
                arrival > now + TINY and pending and now + (1.0 - self.overrun) * costs.weight_grad[pending[0][0]] <= arrival + TINY
            ):
                made.append((2, *pending[0]))
                done, _ = pending.popleft()
                self.held[rank] -= costs.memory[done]
                now += costs.weight_grad[done]
                continue
            if arrival > now + TINY:
                if self.waits is not None and at:
                    self.waits[code] = arrival - now
                now = arrival
            if not at:
                self.first[rank] = now
            made.append(code)
            at += 1
            now = self.take(rank, code, now)
        self.at[rank], self.free[rank] = at, now
        return True

    def take(self, rank: int, code: Code, now: float) -> float:
        """Do a forward or an input gradient and wake the rank that waits for it; returns its end."""
        kind, s, micro = code
        micros, costs, hops = self.pipe.micros, self.pipe.costs, self.pipe.hops
        if kind == 0:
            now += costs.forward[s]
            self.held[rank] += costs.memory[s]
            follower = (0, s + 1, micro) if s + 1 < len(hops) else (1, s, micro)
            self.arrivals[follower[0]][follower[1] * micros + micro] = now + hops[s]
        else:
            now += costs.input_grad[s]
            self.pending[rank].append((s, micro))
            follower = (1, s - 1, micro)
            if s:
                self.arrivals[1][(s - 1) * micros + micro] = now + hops[s - 1]
        if follower in self.waiting:
            self.ready.append(self.waiting.pop(follower))
        return now
