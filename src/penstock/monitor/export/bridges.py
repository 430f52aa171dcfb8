"""What the bridges to other people's trackers share: their package, imported only when asked for, and courses turned into steps.

Cost: memory for the courses sent, which `points` bounds. When not to use it: from a training process; bridges read the run's folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from types import ModuleType

from penstock.config import UserError
from penstock.monitor.series.course import Course


def needed(module: str, extra: str) -> ModuleType:
    """A module of an optional package; raises `UserError` that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs a package that is not installed ({error}); install it with: pip install 'penstock[{extra}]'") from None


def by_step(courses: Iterable[Course]) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Steps in order with their time (unix seconds) and the values measured; where ranks differ also `name.low` and `name.high`."""
    steps: dict[int, tuple[float, dict[str, float]]] = {}
    for course in courses:
        unlike = course.low_rank != course.high_rank
        for i, (step, time, value) in enumerate(zip(course.steps.tolist(), course.times.tolist(), course.value.tolist())):
            values = steps.setdefault(step, (time, {}))[1]
            values[course.name] = value
            if unlike[i]:
                values[f"{course.name}.low"], values[f"{course.name}.high"] = float(course.low[i]), float(course.high[i])
    for step in sorted(steps):
        yield step, *steps[step]
