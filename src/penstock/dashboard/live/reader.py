"""Reads one run as it is written, for all who watch it: rows of its ranks, its history, its alerts.

    ranks' rows ── Gather ──► steps in order ──► whole (put together) ──► Ring
    history.jsonl, alerts.jsonl, the writer's lock ──► Standing

It begins where the store ends and reads every rank's log on, so a row is read once however many watch. A new generation of ranks that goes on before
the last step (a resume, a rewind, lost ranks) makes what was told since void, which viewers are told. Cost: for 8 ranks of 300 metrics some 3 ms a
step, for steps that have passed a look at each log. When not to use it: for a run that has ended, whose rows do not change.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penstock.dashboard.live.ring import Position, Ring, Step, rows_of
from penstock.dashboard.opened import place_of
from penstock.dashboard.standing import NewRow, Standing
from penstock.dashboard.tokens import NAME as TOKENS
from penstock.dashboard.tokens import planned_tokens
from penstock.monitor.cost import HOURS
from penstock.monitor.overview import MAIN
from penstock.monitor.series import Gather, Kinds, Merged, read_kinds
from penstock.monitor.series.columns import ColumnReader
from penstock.monitor.series.keeper import STORE
from penstock.monitor.series.merge import Generation
from penstock.monitor.series.together import Whole, put_together
from penstock.store.runs import Run

#: Seconds that a step waits for late ranks.
LATE_S = 0.5
#: Metrics that the overview follows.
_FOLLOWED = (*MAIN, TOKENS, HOURS, "cost/mfu", "cost/ranks")


@dataclass(frozen=True)
class Turn:
    """What a look at a run found: whether there are new steps, and whether alerts changed."""

    steps: bool
    alerts: bool


class Reader:
    """Reads the run in a folder; the caller turns it, from one thread at a time."""

    def __init__(self, run: Run) -> None:
        self.run, self._folder = run, run.path / "metrics"
        self.standing = Standing(run)
        self._a_step = planned_tokens(run.path)
        self._begin()
        while self.turn().steps:
            pass

    @property
    def generation(self) -> Generation | None:
        """The newest generation of ranks; None before there is one."""
        known = self._gather.merger.generations
        return known[max(known)] if known else None

    def turn(self) -> Turn:
        """Take in what has come."""
        if place_of(self._folder) != self._where:
            self._begin()
        merged = self._gather.poll(time.monotonic())
        for step in self._together(merged):
            if step.at.generation > self.ring.newest.generation:
                self.ring.cut(self._gather.merger.generations[step.at.generation].after)
            self.ring.add(step)
        before = self._book_lines()
        self.standing.look(again=self._new_generation())
        if merged:
            self.standing.rows([self._new_row(step) for step in list(self.ring.steps)[-len(merged) :]])
        return Turn(bool(merged), self._book_lines() != before)

    def went_back(self, position: Position) -> int | None:
        """The step after which what somebody at a position has seen no longer counts, or must be fetched anew; None if it still does."""
        later = [g for g in self._gather.merger.generations.values() if g.number > position.generation >= 0]
        after = min((g.after for g in later), default=position.step)
        if after < position.step:
            return after
        if position.step < self.ring.floor.step:
            return self.ring.newest.step
        return None

    def rows(self, position: Position, names: tuple[str, ...]) -> dict[str, Any]:
        """The rows of some metrics behind a position, as an event has them."""
        columns = {name: self._gather.merger.names.find(name) for name in names}
        return {"through": self.ring.newest.step, "courses": rows_of(self.ring.behind(position), columns)}

    def _begin(self) -> None:
        """Read from where the store ends."""
        store = ColumnReader(self._folder / STORE)
        through, generations = store.through, list(store.generations.values())
        store.close()
        self._where = place_of(self._folder)
        self._kinds = read_kinds(self._folder) or Kinds()
        self._gather = Gather(self._folder, through, generations, late_s=LATE_S)
        self.ring = Ring(Position(max(0, through[0]), max(0, through[1])))
        self._seen_generation = max(self._gather.merger.generations, default=0)

    def _new_generation(self) -> bool:
        newest = max(self._gather.merger.generations, default=0)
        changed, self._seen_generation = newest != self._seen_generation, newest
        return changed

    def _book_lines(self) -> object:
        return tuple((alert.id, alert.state, alert.notes, alert.also, alert.what) for alert in self.standing.book.alerts.values())

    def _together(self, merged: list[Merged]) -> list[Step]:
        """The steps of all ranks, those of one shape at once."""
        found: list[Step] = []
        begin = 0
        for end in range(1, len(merged) + 1):
            if end == len(merged) or _shape(merged[end]) != _shape(merged[begin]):
                found += self._steps(merged[begin:end])
                begin = end
        return found

    def _steps(self, batch: list[Merged]) -> list[Step]:
        table = batch[0].table
        names = table.names.all[: table.values_rm.shape[1]]
        whole = put_together(np.stack([one.table.values_rm for one in batch]), table.ranks, [self._kinds.of(name).together for name in names])
        return [self._step(one, whole, i) for i, one in enumerate(batch)]

    def _step(self, one: Merged, whole: Whole, row: int) -> Step:
        at = Position(one.generation, one.table.step)
        five = whole.value[row], whole.low[row], whole.high[row], whole.high_rank[row]
        step = Step(at, one.table.time, at.step * self._a_step, one.table.ranks, *five)
        counted = one.table.names.find(TOKENS)
        return replace(step, tokens=float(step.value[counted])) if counted is not None and step.measured(counted) else step

    def _new_row(self, step: Step) -> NewRow:
        columns = {name: self._gather.merger.names.find(name) for name in _FOLLOWED}
        values = {
            name: (float(step.value[c]), float(step.low[c]), float(step.high[c]), int(step.high_rank[c]))
            for name, c in columns.items() if c is not None and step.measured(c)
        }  # fmt: skip
        return NewRow(step.at.step, step.time, values, step.ranks)


def _shape(merged: Merged) -> tuple[tuple[int, ...], int]:
    return merged.table.ranks, merged.table.values_rm.shape[1]
