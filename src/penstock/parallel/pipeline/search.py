"""The search behind `synthesise`: schedules are dispatched with times that are not the true ones, and judged by the true ones.

A dispatcher that always knows the true times packs badly: it fills memory early, and actions of unlike length never fit again. Made with other
times, its orders are others, and some of them are very good by the true times. So the search is over the *recipe* of a schedule: factors on every
stage's three times and on the transfers, the share of the memory that may be used, each rank's preference among its actions, and how far a weight
gradient may overrun the gap that it fills (a search in problem space: Storer, Wu, Vaccari, Management Science 38(10), 1992).

First a small grid of recipes is tried, among them the one that takes all times as alike, which gives the zero-bubble orders; then the best few are
changed at random, and a change is kept where it does not harm. The random numbers are seeded and the count of recipes is fixed beforehand by the
size of the problem, so the same question has the same answer on every machine. Cost: `BUDGET` actions dispatched, about 3 microseconds each.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import product

from penstock.parallel.pipeline.dispatch import Dispatch, Pipe, Rows, fill_weights
from penstock.parallel.pipeline.schedule import Costs

BUDGET = 280_000  # actions dispatched in all: under a second
RECIPES = (10, 400)  # recipes tried at least (large cases) and at most (small ones)
KEPT = 4  # recipes that are worked on
OVERRUNS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHARES = (1.0, 1.0, 0.95, 0.9, 0.85)
HASTE = 1e-3  # how much the mean of all ranks counts beside the slowest: it tells two equally slow schedules apart

Order = list[tuple[int, int]]  # a rank's preference: (kind, stage), first to last


@dataclass(frozen=True)
class Recipe:
    """How a schedule is made: factors on each stage's times, and the dispatcher's rules."""

    factors: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    transfer: float
    share: float
    orders: tuple[tuple[tuple[int, int], ...], ...]
    overrun: float


@dataclass(frozen=True)
class Found:
    """A schedule with its score (less is better) and the recipe that made it."""

    score: float
    rows: Rows
    recipe: Recipe


class Search:
    """A search for one pipe; `best` returns the schedules found, best first."""

    def __init__(self, pipe: Pipe, barrier: bool) -> None:
        self.pipe, self.barrier = pipe, barrier
        self.random = random.Random(0)
        self.stages = len(pipe.rank_of)
        actions = 3 * self.stages * pipe.micros
        self.recipes = min(max(BUDGET // actions, RECIPES[0]), RECIPES[1])

    def best(self) -> list[Found]:
        """Try the grid, then change the best few; at most `KEPT` schedules, best first. Empty if no order fits (it always does above the least cap)."""
        first = self.grid()[: max(1, self.recipes * 2 // 3)]
        kept = sorted(filter(None, map(self.attempt, first)), key=lambda found: found.score)[:KEPT]
        for _ in range(self.recipes - len(first)):
            at = min(int(self.random.expovariate(1.0)), len(kept) - 1)
            found = self.attempt(self.changed(kept[at].recipe))
            if found is not None and found.score <= kept[at].score:
                kept[at] = found
                kept.sort(key=lambda found: found.score)
        return kept

    def attempt(self, recipe: Recipe) -> Found | None:
        """Make the recipe's schedule and judge it; None if its weight gradients cannot be placed within memory."""
        pipe = self.pipe if recipe.share == 1.0 else replace(self.pipe, cap=max(max(self.pipe.full), recipe.share * self.pipe.cap))
        rows = Dispatch(pipe, self.times(recipe), [list(order) for order in recipe.orders]).run()
        filled = fill_weights(self.pipe, rows, recipe.overrun)
        if filled is None:
            return None
        rows, first, ends = filled
        taken = ends if self.barrier else [end - start for start, end in zip(first, ends)]
        return Found(max(taken) + HASTE * sum(taken) / len(taken), rows, recipe)

    def times(self, recipe: Recipe) -> Costs:
        """The times that a recipe plans with."""
        costs = self.pipe.costs
        true = (costs.forward, costs.input_grad, costs.weight_grad)
        forward, input_grad, weight_grad = (tuple(t * f for t, f in zip(times, factors)) for times, factors in zip(true, recipe.factors))
        return Costs(forward, input_grad, weight_grad, tuple(t * recipe.transfer for t in costs.transfer), costs.memory)

    def grid(self) -> list[Recipe]:
        """First guesses, the most promising first: all times as alike, or the true ones, with and without transfers, by three rules."""
        costs = self.pipe.costs
        ones = (1.0,) * self.stages
        mean = sum(costs.forward) + sum(costs.input_grad) + sum(costs.weight_grad)
        level = [mean / (3 * sum(times)) if sum(times) else 1.0 for times in (costs.forward, costs.input_grad, costs.weight_grad)]
        recipes = []
        for back, weight, transfer, rule in product((level[1] / level[0], 1.0), (1.0, 0.75, level[2] / level[0]), (0.0, 1.0), (0, 1, 2)):
            factors = (ones, (back,) * self.stages, (weight,) * self.stages)
            recipes.append(Recipe(factors, transfer, 1.0, self.rule(rule), 0.5 if transfer else 0.0))
        return recipes

    def rule(self, which: int) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Preferences of all ranks: input gradients before forwards or after, later stages first; or earlier input gradients first."""
        orders = []
        for own in self.pipe.own:
            late = own[::-1]
            back, forward = [(1, s) for s in (own if which == 2 else late)], [(0, s) for s in late]
            orders.append(tuple(forward + back if which == 1 else back + forward))
        return tuple(orders)

    def changed(self, recipe: Recipe) -> Recipe:
        """A recipe with one to three random changes."""
        for _ in range(self.random.choice((1, 1, 2, 3))):
            draw = self.random.random()
            if draw < 0.6:
                recipe = replace(recipe, factors=self.scaled(recipe.factors))
            elif draw < 0.7:
                recipe = replace(recipe, transfer=self.random.choice((0.0, 0.5, 1.0, 1.5)))
            elif draw < 0.75:
                recipe = replace(recipe, share=self.random.choice(SHARES))
            elif draw < 0.82:
                recipe = replace(recipe, overrun=self.random.choice(OVERRUNS))
            else:
                recipe = replace(recipe, orders=self.swapped(recipe.orders))
        return recipe

    def scaled(self, factors: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """One kind's factors changed: on all stages, on one chunk of all ranks, on all chunks of a rank, or on one stage."""
        kind, factor, which = self.random.randrange(3), math.exp(self.random.gauss(0.0, 0.15)), self.random.random()
        ranks = len(self.pipe.own)
        chosen: set[int] | range = range(self.stages)
        if 0.25 <= which < 0.6:
            start = self.random.randrange(0, self.stages, ranks)
            chosen = range(start, start + ranks)
        elif 0.6 <= which < 0.8:
            chosen = set(self.random.choice(self.pipe.own))
        elif which >= 0.8:
            chosen = {self.random.randrange(self.stages)}
        new = [tuple(f * factor if at == kind and s in chosen else f for s, f in enumerate(row)) for at, row in enumerate(factors)]
        return new[0], new[1], new[2]

    def swapped(self, orders: tuple[tuple[tuple[int, int], ...], ...]) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Two neighbours in the preference changed, on all ranks or on one."""
        at = self.random.randrange(max(1, max(map(len, orders)) - 1))
        ranks = range(len(orders)) if self.random.random() < 0.7 else [self.random.randrange(len(orders))]
        new = list(orders)
        for rank in ranks:
            order = list(new[rank])
            order[at : at + 2] = order[at : at + 2][::-1]
            new[rank] = tuple(order)
        return tuple(new)
