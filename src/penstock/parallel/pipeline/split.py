"""Layers over stages: contiguous parts of a model, so that the busiest rank of the pipeline has as little to do as can be.

A schedule's step lasts at least as long as the rank with most work, so that rank's time counts first: the sum over all its stages, which with several
chunks a rank are not neighbours (in a wave of two the first and the last stage, with embedding and head, share rank 0). Second counts
the busiest stage and then the sum of squares, since schedules fill best with even stages. A limit on every rank's memory is kept before all that.

    one stage a rank    exact, by dynamic programming over (stage, layers before its end): O(S L²) for S stages and L layers, in numpy
    several             from the exact split of stages alone, by steepest descent: the best move of one layer from any stage to any other (the parts
                        between slide along), until none helps. Exact for equal layers; unequal ones are tried from several starts, and come
                        within some per cent of the least (small cases against every possible split).

An inner stage has at least one layer; the first may hold the embedding alone, and the last the head alone (norm, head and loss): both compute
something, and a large vocabulary may be worth several layers. Cost: 0.1 s for 128 layers over 64 stages. When not to use: with equal layers, cheap
ends and a count that divides, the even cut is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from penstock.config import ConfigError, ModelSection
from penstock.parallel.pipeline.layer_costs import Cost, LayerCosts
from penstock.parallel.pipeline.stages import Part

#: Decimals to which times, as shares of the whole model's, are compared.
DIGITS = 12
#: Descents from near the best split where ranks have several stages: at most so many, and fewer the more numbers one step looks at.
RESTARTS, EFFORT = 100, 600_000


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that the parts on one rank may hold, where a stage keeps the activations of `held[stage]` micro-batches at a time."""

    per_rank: float
    held: tuple[float, ...]


def split_layers(
    model: ModelSection,
    stages: int,
    costs: LayerCosts,
    rank_of: Sequence[int] | None = None,
    limit: MemoryLimit | None = None,
    slowness: Sequence[float] | None = None,
) -> tuple[Part, ...]:
    """The part of every stage; the same for the same arguments, everywhere.

    `rank_of` says where stages live (`schedule.wire`; None: each on a rank of its own), and `slowness` how many times longer each rank takes than
    `costs` say. Raises `ConfigError` for more stages than layers, and for a limit under which no split was found, with the least that was.
    """
    ranks = tuple(range(stages)) if rank_of is None else tuple(rank_of)
    check_stages(model.layers, stages, max(ranks) + 1)
    task = _Task(costs, ranks, limit, np.asarray(slowness if slowness is not None else [1.0] * (max(ranks) + 1)))
    bounds = _exact(task) if max(ranks) + 1 == stages else _search(task)
    return tuple(Part(range(a, b), stage == 0, stage == stages - 1) for stage, (a, b) in enumerate(pairwise(bounds)))


def check_stages(layers: int, stages: int, ranks: int) -> None:
    """Raise `ConfigError` if so many layers do not give every one of so many stages something."""
    if stages > layers:
        chunks, fits = stages // ranks, max(1, layers // ranks)
        most = f"at most {layers} ranks" if layers < ranks else f"pipeline.chunks of at most {fits}"
        raise ConfigError(
            f"layout.pipeline = {ranks} with pipeline.chunks = {chunks} makes {stages} stages, more than model.layers = {layers}; "
            f"every stage needs a layer: use {most}, or more layers"
        )


class _Task:
    """The arithmetic of one split: prefix sums of times and bytes, and what a cut at given bounds comes to."""

    def __init__(self, costs: LayerCosts, ranks: tuple[int, ...], limit: MemoryLimit | None, slowness: np.ndarray) -> None:
        self.stages, self.layers = len(ranks), len(costs.layers)
        self.least = np.ones(self.stages, dtype=np.int64)
        self.least[[0, -1]] = 0 if self.stages > 1 else self.layers
        self.limit, held = limit, np.asarray(limit.held if limit else [0.0] * self.stages)
        self.times = self._table([cost.time for cost in costs.layers])
        self.states, self.kept = self._table([c.state for c in costs.layers]), self._table([c.kept for c in costs.layers])
        self.held, self.slow = held, slowness[list(ranks)]
        self.end_time, self.end_bytes = np.zeros(self.stages), np.zeros(self.stages)
        for stage, cost in ((0, costs.embedding), (self.stages - 1, costs.head)):
            self.end_time[stage] += cost.time
            self.end_bytes[stage] += _bytes(cost, held[stage])
        self.scale = 1.0 / max(1e-300, float(self.times[-1] + self.end_time.sum()))
        self.of_rank = np.zeros((self.stages, len(slowness)))
        self.of_rank[np.arange(self.stages), list(ranks)] = 1.0

    @staticmethod
    def _table(values: Sequence[float]) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(values)])

    def stage_times(self, first: np.ndarray, last: np.ndarray, stage: slice | int = slice(None)) -> np.ndarray:
        """Shares of the whole model's time that stages of layers first … last - 1 take."""
        return (self.times[last] - self.times[first] + self.end_time[stage]) * self.slow[stage] * self.scale

    def stage_bytes(self, first: np.ndarray, last: np.ndarray, stage: slice | int = slice(None)) -> np.ndarray:
        """Bytes that such stages hold."""
        return self.states[last] - self.states[first] + self.held[stage] * (self.kept[last] - self.kept[first]) + self.end_bytes[stage]

    def refuse(self, least: float) -> ConfigError:
        """The error for a limit that cannot be kept."""
        assert self.limit is not None
        return ConfigError(
            f"no split of model.layers = {self.layers} over {self.stages} stages keeps every rank within {self.limit.per_rank / 2**30:.2f} GiB: "
            f"the best found needs {least / 2**30:.2f} GiB; use a larger layout.pipeline or layout.shard, or a smaller batch.micro"
        )


def _bytes(cost: Cost, held: float) -> float:
    return cost.state + held * cost.kept


def _exact(task: _Task) -> list[int]:
    """Bounds of the best split where every stage has a rank of its own."""
    ends = np.arange(task.layers + 1)
    first, last = ends[:, None], ends[None, :]
    possible = [last - first >= least for least in task.least]
    sizes = [np.where(ok, task.stage_bytes(first, last, stage), np.inf) for stage, ok in enumerate(possible)]
    if task.limit is not None:
        if (least := _bottleneck(sizes)) > task.limit.per_rank:
            raise task.refuse(least)
        possible = [ok & (size <= task.limit.per_rank) for ok, size in zip(possible, sizes)]
    return _even(task, possible)


def _even(task: _Task, possible: list[np.ndarray]) -> list[int]:
    """Bounds that make the busiest stage's time least, and under that the sum of squares; `possible[stage][first, last]` says what may be."""
    ends = np.arange(task.layers + 1)
    times = [np.where(ok, task.stage_times(ends[:, None], ends[None, :], stage).round(DIGITS), np.inf) for stage, ok in enumerate(possible)]
    top = _bottleneck(times)
    total, ways = np.full(task.layers + 1, np.inf), []
    total[0] = 0.0
    for time in times:
        sums = total[:, None] + np.where(time <= top, time, np.inf) ** 2
        ways.append(sums.argmin(0))
        total = sums.min(0)
    bounds = [task.layers]
    for way in reversed(ways):
        bounds.append(int(way[bounds[-1]]))
    return bounds[::-1]


def _bottleneck(tables: list[np.ndarray]) -> float:
    """The least possible largest entry of a chain of parts from 0 to the end, one of each table[first, last]."""
    best = np.full(len(tables[0]), np.inf)
    best[0] = 0.0
    for table in tables:
        best = np.maximum(best[:, None], table).min(0)
    return float(best[-1])


def _search(task: _Task) -> list[int]:
    """Bounds of a good split where ranks have several stages: the ranks' times are levelled first, then the stages'."""
    ends = np.arange(task.layers + 1)
    moves = _moves(task.stages)
    bounds = _level_ranks(task, np.asarray(_even(task, [ends[None, :] - ends[:, None] >= least for least in task.least])), moves)
    excess, busiest = _rank_key(task, bounds[None])[:2]
    if excess[0] > 0:
        assert task.limit is not None
        raise task.refuse(task.limit.per_rank + float(excess[0]))

    def stage_key(task: _Task, bounds: np.ndarray) -> tuple[np.ndarray, ...]:
        over, rank_time, _ = _rank_key(task, bounds)
        times = task.stage_times(bounds[:, :-1], bounds[:, 1:])
        return over + (rank_time > busiest[0]), times.max(1).round(DIGITS), (times**2).sum(1).round(DIGITS)

    return [int(bound) for bound in _descend(task, bounds, moves, stage_key)]


def _level_ranks(task: _Task, bounds: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Descend by the ranks' times; where layers are unequal again from near the best found, a fixed effort long (iterated local search)."""
    best = _descend(task, bounds, moves, _rank_key)
    key, generator = _first(_rank_key(task, best[None])), np.random.default_rng(0)
    effort = 0 if np.ptp(np.diff(task.times)) <= 1e-9 * task.times[-1] else max(1, min(RESTARTS, EFFORT // moves.size))
    for _ in range(effort):
        start = best + moves[generator.integers(len(moves), size=2)].sum(0)
        if (np.diff(start) >= task.least).all():
            found = _descend(task, start, moves, _rank_key)
            if (found_key := _first(_rank_key(task, found[None]))) < key:
                best, key = found, found_key
    return best


def _moves(stages: int) -> np.ndarray:
    """Changes of the bounds that take a layer from one stage and give one to another: all bounds between them slide by one, either way."""
    slides = []
    for first in range(1, stages):
        for last in range(first, stages):
            slide = np.zeros(stages + 1, dtype=np.int64)
            slide[first : last + 1] = 1
            slides += [slide, -slide]
    return np.array(slides).reshape(-1, stages + 1)


def _rank_key(task: _Task, bounds: np.ndarray) -> tuple[np.ndarray, ...]:
    """Bytes above the limit on the fullest rank, time of the busiest, and sum of squares of the ranks' times, of every row of bounds."""
    rank_times = task.stage_times(bounds[:, :-1], bounds[:, 1:]) @ task.of_rank
    over = np.zeros(len(bounds))
    if task.limit is not None:
        over = np.maximum(0.0, (task.stage_bytes(bounds[:, :-1], bounds[:, 1:]) @ task.of_rank).max(1) - task.limit.per_rank)
    return over, rank_times.max(1).round(DIGITS), (rank_times**2).sum(1).round(DIGITS)


def _descend(task: _Task, bounds: np.ndarray, moves: np.ndarray, key_of: Callable[[_Task, np.ndarray], tuple[np.ndarray, ...]]) -> np.ndarray:
    """Take the best move by `key_of`, first entries first, until none is better than staying."""
    key = _first(key_of(task, bounds[None]))
    while True:
        candidates = bounds + moves
        candidates = candidates[(np.diff(candidates, axis=1) >= task.least).all(1)]
        if not len(candidates):
            return bounds
        keys = key_of(task, candidates)
        best = int(np.lexsort(keys[::-1])[0])
        found = _first([value[best : best + 1] for value in keys])
        if found >= key:
            return bounds
        bounds, key = candidates[best], found


def _first(key: Sequence[np.ndarray]) -> tuple[float, ...]:
    return tuple(float(value[0]) for value in key)
