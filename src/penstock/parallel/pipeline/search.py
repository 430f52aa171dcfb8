"""The search behind `synthesise`: schedules are dispatched with times that are not the true ones, and judged by the true ones.

A dispatcher that plans with the true times packs badly: it fills memory early, and actions of unlike length never fit again. Planned with other
times, its orders are others, and some of them are very good by the true times. So the search is over the *recipe* of a schedule: factors on every
stage's three times and on the transfers, the share of the memory that may be used, each rank's preference among its actions, how many micro-batches
each stage may have in hand, and how far a weight gradient may overrun the gap that it fills (a search in problem space: Storer, Wu, Vaccari,
Management Science 38(10), 1992).

First a grid of recipes is tried, among them the ones that take forwards, input and weight gradients as alike, which give the zero-bubble orders;
then the best few are changed at random, and a change is kept where it does not harm. Most of it is done with few micro-batches, as recipes are
as good with many. The best two schedules are polished (polish.py). Random numbers are seeded and the count of recipes is fixed beforehand by the
size of the problem, so that the same question has the same answer on every machine. Cost: `BUDGET` actions, about 3 microseconds each.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import product

from penstock.parallel.pipeline.dispatch import Dispatch, Pipe, Rows, fill_weights
from penstock.parallel.pipeline.polish import OVERRUNS, Polish, score
from penstock.parallel.pipeline.recipe import RULES, UNLIMITED, Found, Recipe, preference, shared_limits
from penstock.parallel.pipeline.schedule import Costs

BUDGET = 200_000  # actions dispatched in all: under a second
REHEARSED = 0.75  # the part of them spent on few micro-batches
RECIPES = (10, 400)  # recipes tried at least (large cases) and at most (small ones), in each of the two parts
FEWEST = 30  # recipes that must be payable to rehearse with four micro-batches a rank, not two
POLISH = 1.0  # changes of order tried per recipe, together
POLISHED = 2  # schedules that are polished
KEPT = 4  # recipes that are worked on, of different rules at first
SHARES = (1.0, 1.0, 0.95, 0.9, 0.85)


class Search:
    """A search for one pipe; `best` returns the schedules found, best first."""

    def __init__(self, pipe: Pipe, barrier: bool, effort: float = 1.0) -> None:
        self.pipe, self.barrier, self.budget = pipe, barrier, effort * BUDGET
        self.random = random.Random(0)
        self.stages = len(pipe.rank_of)

    def best(self) -> list[Rows]:
        """The best schedules of the search, each polished; at least one."""
        found = self.recipes()[:POLISHED]
        trials = int(self.budget * POLISH / len(found) / (3 * self.stages * self.pipe.micros))
        return [Polish(self.pipe, each.rows, each.recipe.overrun, self.barrier).run(trials) for each in found]

    def recipes(self) -> list[Found]:
        """Try the grid, then change the best few, first on few micro-batches; at most `KEPT` schedules, best first, at least one."""
        whole, ranks = self.pipe, len(self.pipe.own)
        many = 12 * self.stages * ranks > self.budget / FEWEST
        few = min(whole.micros, (2 if many else 4) * ranks)
        recipes = self.grid()
        if few < whole.micros:
            self.pipe = replace(whole, micros=few)
            count = self.count(REHEARSED)
            recipes = [found.recipe for found in self.climb(recipes[: max(RULES, count // 4)], count)]
            self.pipe = whole
            return self.climb(recipes, max(self.count(1.0 - REHEARSED), len(recipes)))
        count = self.count(1.0)
        return self.climb(recipes[: max(RULES, count // 4)], count)

    def count(self, part: float) -> int:
        """Recipes that a part of the budget pays for."""
        return min(max(int(part * self.budget / (3 * self.stages * self.pipe.micros)), RECIPES[0]), int(RECIPES[1] * self.budget / BUDGET))

    def climb(self, recipes: list[Recipe], count: int) -> list[Found]:
        """The best of the recipes, changed until `count` have been tried."""
        made = (self.attempt(recipe, OVERRUNS[:4]) for recipe in recipes)
        tried = sorted((found for found in made if found is not None), key=lambda found: found.score)
        leaders = {found.recipe.orders: found for found in reversed(tried)}  # of each rule the best: where rules differ, changes lead elsewhere
        kept = sorted(leaders.values(), key=lambda found: found.score)[:KEPT]
        for _ in range(count - len(recipes)):
            at = min(int(self.random.expovariate(0.7)), len(kept) - 1)
            found = self.attempt(self.changed(kept[at].recipe))
            if found is not None and found.score <= kept[at].score:
                kept[at] = found
                kept.sort(key=lambda found: found.score)
        return kept

    def attempt(self, recipe: Recipe, overruns: tuple[float, ...] = ()) -> Found | None:
        """Make the recipe's schedule, with the best of the given overruns, and judge it; None if weight gradients cannot be placed within memory."""
        pipe = self.pipe if recipe.share == 1.0 else replace(self.pipe, cap=max(max(self.pipe.full), recipe.share * self.pipe.cap))
        rows = Dispatch(pipe, self.times(recipe), recipe.orders, recipe.limits).run()
        best: Found | None = None
        for overrun in overruns or (recipe.overrun,):
            filled = fill_weights(self.pipe, rows, overrun)
            if filled is not None:
                found = Found(score(*filled[1:], self.barrier), filled[0], replace(recipe, overrun=overrun))
                best = found if best is None or found.score < best.score else best
        return best

    def times(self, recipe: Recipe) -> Costs:
        """The times that a recipe plans with."""
        costs = self.pipe.costs
        true = (costs.forward, costs.input_grad, costs.weight_grad)
        forward, input_grad, weight_grad = (tuple(t * f for t, f in zip(times, factors)) for times, factors in zip(true, recipe.factors))
        return Costs(forward, input_grad, weight_grad, tuple(t * recipe.transfer for t in costs.transfer), costs.memory)

    def grid(self) -> list[Recipe]:
        """First guesses, the most promising first: all kinds as alike or with their true times, with and without transfers, by several rules."""
        costs = self.pipe.costs
        totals = [sum(times) or 1.0 for times in (costs.forward, costs.input_grad, costs.weight_grad)]
        ones, limits = (1.0,) * self.stages, ((UNLIMITED,) * self.stages, shared_limits(self.pipe))
        orders = [preference(self.pipe, rule) for rule in range(RULES)]
        recipes = []
        for transfer, weight, back in product((0.0, 1.0), (0.75, 1.0, totals[0] / totals[2]), (totals[0] / totals[1], 1.0)):
            factors = (ones, (back,) * self.stages, (weight,) * self.stages)
            recipes += [Recipe(factors, transfer, 1.0, order, limit, 0.5 if transfer else 0.0) for limit, order in product(limits, orders)]
        return recipes

    def changed(self, recipe: Recipe) -> Recipe:
        """A recipe with one to three random changes."""
        for _ in range(self.random.choice((1, 1, 2, 3))):
            draw = self.random.random()
            if draw < 0.55:
                recipe = replace(recipe, factors=self.scaled(recipe.factors))
            elif draw < 0.65:
                recipe = replace(recipe, transfer=self.random.choice((0.0, 0.5, 1.0, 1.5)))
            elif draw < 0.7:
                recipe = replace(recipe, share=self.random.choice(SHARES))
            elif draw < 0.75:
                recipe = replace(recipe, overrun=self.random.choice(OVERRUNS))
            elif draw < 0.85:
                recipe = replace(recipe, limits=self.shifted(recipe.limits))
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
        """Two neighbours in the preference changed, on most or on one of the ranks."""
        at = self.random.randrange(max(1, max(map(len, orders)) - 1))
        new = list(orders)
        for rank in self.some_ranks(0.7):
            order = list(new[rank])
            order[at : at + 2] = order[at : at + 2][::-1]
            new[rank] = tuple(order)
        return tuple(new)

    def shifted(self, limits: tuple[int, ...]) -> tuple[int, ...]:
        """One micro-batch in hand more for one chunk, mostly at the expense of another; limits are sometimes set up or lifted."""
        if limits[0] == UNLIMITED:
            return shared_limits(self.pipe)
        if self.random.random() < 0.1:
            return (UNLIMITED,) * self.stages
        new, more, less, give = list(limits), self.random.random(), self.random.random(), self.random.random() < 0.3
        for rank in self.some_ranks(0.5):
            own = self.pipe.own[rank]
            gains, loses = own[int(more * len(own))], own[int(less * len(own))]
            if give or new[loses] > 1:
                new[gains] += 1
                new[loses] -= 0 if give else 1
        return tuple(new)

    def some_ranks(self, all_of_them: float) -> range | list[int]:
        """All ranks with the given probability, else one."""
        ranks = len(self.pipe.own)
        return range(ranks) if self.random.random() < all_of_them else [self.random.randrange(ranks)]
