"""What a run measured, as it is told: its metrics with what they mean, and their courses.

The server answers with it (`routes/metrics.py`), and a frozen page carries it (`frozen.py`). Cost: one query of the courses together; of 300 metrics
over 10,000 steps some tenths of a second. When not to use it: for how a run stands (`standing.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.dashboard.courses import Asked, packed
from penstock.dashboard.opened import Metrics
from penstock.dashboard.tokens import tokens_at
from penstock.monitor.series import Bound, Course


def metrics_told(found: Metrics) -> list[dict[str, Any]]:
    """The metrics that a run measured, with what they mean."""
    kinds = [(name, found.series.kinds.of(name)) for name in found.names()]
    return [
        {"name": name, "unit": kind.unit, "meaning": kind.meaning, "bad": kind.bad, "together": kind.together, "group": name.partition("/")[0]}
        for name, kind in kinds
    ]


def courses_of(found: Metrics, asked: Asked) -> list[Course]:
    """The courses that are asked for, of those that there are."""
    known = set(found.names())
    names = [name for name in asked.names if name in known]
    return list(found.series.courses(names, Bound(asked.first), Bound(asked.last), asked.points))


def courses_told(found: Metrics, id: str, run: Path, asked: Asked, courses: list[Course]) -> bytes:
    """The bytes of the courses (`courses_of`) of a run at a path, with the step that they go to and the names that were never measured."""
    whole = asked.last is None and any(len(course.steps) for course in courses)
    through = max(int(course.steps[-1]) for course in courses if len(course.steps)) if whole else found.series.last_row()[0]
    there = {course.name for course in courses}
    missing = [name for name in asked.names if name not in there]
    return packed(id, courses, through, missing, tokens_at(run, found))
