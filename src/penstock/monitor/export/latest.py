"""The newest value of every metric, for those who ask again and again: an endpoint, a terminal.

Only the last `STEPS` steps are looked at, so the cost does not grow with the run: what was not measured in them is not told. Cost: some 10 ms for 300
metrics. When not to use it: for a course.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.monitor.series.kinds import Kind
from penstock.monitor.series.query import Bound, Series

STEPS = 1000


@dataclass(frozen=True)
class Latest:
    """A metric's newest row: the whole, and the lowest and highest rank."""

    name: str
    kind: Kind
    step: int
    time: float
    value: float
    low: float
    high: float
    low_rank: int
    high_rank: int


def latest(series: Series) -> list[Latest]:
    """The newest row of each metric that was measured lately."""
    since = Bound(step=series.last_row()[0] - STEPS)
    return [
        Latest(
            course.name, course.kind, int(course.steps[-1]), float(course.times[-1]), float(course.value[-1]), float(course.low[-1]),
            float(course.high[-1]), int(course.low_rank[-1]), int(course.high_rank[-1]),
        )
        for course in series.courses(series.names(), since=since, points=4) if len(course.steps)
    ]  # fmt: skip
