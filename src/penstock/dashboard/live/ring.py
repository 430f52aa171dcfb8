"""The last steps of a run that trains, put together over its ranks, from which every viewer reads on from where it is.

A viewer has a position, the generation and step that it saw last, and no queue: what a slow one has not fetched waits here once for all, and who has
fallen behind the oldest step here is told to fetch anew. Cost: 28 bytes a metric and step, `MOST_BYTES` at most. When not to use it: for steps that
were stored before anybody watched (`courses.py`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from penstock.monitor.series.table import ABSENT_BITS

#: Bytes and steps that are held at most.
MOST_BYTES, MOST_STEPS = 24 << 20, 4096
_NUMBER = re.compile(r"[0-9]{1,15}")


class Position(NamedTuple):
    """The last step that somebody has seen, and its generation; `generation` -1: whichever it was."""

    generation: int
    step: int

    def __str__(self) -> str:
        """As the id of an event: the step first."""
        return f"{self.step}.{self.generation}"

    @staticmethod
    def parse(text: str) -> Position | None:
        """A position from the id of an event, or from a step alone; None for what is neither."""
        step, _, generation = text.partition(".")
        if _NUMBER.fullmatch(step) and (not generation or _NUMBER.fullmatch(generation)):
            return Position(int(generation) if generation else -1, int(step))
        return None


@dataclass(frozen=True)
class Step:
    """A step of all ranks: value, low and high float64 [metrics], high_rank int32 [metrics], `ABSENT` where nothing was measured."""

    at: Position
    time: float
    tokens: float
    ranks: tuple[int, ...]
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    high_rank: np.ndarray

    @property
    def bytes(self) -> int:
        """Memory of it, about."""
        return 28 * len(self.value) + 200

    def measured(self, column: int | None) -> bool:
        """Whether a metric was measured in it."""
        return column is not None and column < len(self.value) and int(self.value[column : column + 1].view(np.uint64)[0]) != ABSENT_BITS


class Ring:
    """The newest steps, the oldest first; complete behind `floor`."""

    def __init__(self, floor: Position) -> None:
        self.floor = floor
        self.steps: deque[Step] = deque()
        self._bytes = 0

    @property
    def newest(self) -> Position:
        """The last step's position."""
        return self.steps[-1].at if self.steps else self.floor

    def add(self, step: Step) -> None:
        """Put a step at the end; the oldest make room."""
        self.steps.append(step)
        self._bytes += step.bytes
        while len(self.steps) > 1 and (self._bytes > MOST_BYTES or len(self.steps) > MOST_STEPS):
            gone = self.steps.popleft()
            self._bytes -= gone.bytes
            self.floor = gone.at

    def cut(self, after: int) -> None:
        """Forget the steps behind one, which ranks that go on after it will do again."""
        while self.steps and self.steps[-1].at.step > after:
            self._bytes -= self.steps.pop().bytes
        self.floor = min(self.floor, self.floor._replace(step=after))

    def behind(self, position: Position) -> list[Step]:
        """The steps that follow a position."""
        found: list[Step] = []
        for step in reversed(self.steps):
            if step.at <= position:
                break
            found.append(step)
        return found[::-1]


def rows_of(steps: list[Step], columns: dict[str, int | None]) -> dict[str, dict[str, list[Any]]]:
    """Some metrics of steps, by name and column, as lists for JSON; metrics that none of them measured are left out."""
    return {name: lists for name, column in columns.items() if (lists := _lists(steps, column))["step"]}


def _lists(steps: list[Step], column: int | None) -> dict[str, list[Any]]:
    there = [step for step in steps if step.measured(column)]
    told: dict[str, list[Any]] = {"step": [one.at.step for one in there]}
    told |= {"time": [one.time for one in there], "tokens": [one.tokens for one in there]}
    for name in ("value", "low", "high", "high_rank"):
        told[name] = list(_column(there, name, column))
    return told


def _column(steps: list[Step], name: str, column: int | None) -> Iterator[Any]:
    for step in steps:
        yield getattr(step, name)[column].item()
