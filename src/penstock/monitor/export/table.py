"""Courses of metrics as people and programs read them: a table, CSV, JSON.

NaN and infinity are `nan`, `inf` and `-inf` in all of them; in JSON, which has no such numbers, they are these texts. Numbers are written so that
they come back as the same float64. Cost: some 2 µs a number of CSV. When not to use it: for millions of rows that a program could read from the
store."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from penstock.monitor.series.course import Course
from penstock.monitor.series.kinds import Kind
from penstock.monitor.series.query import Series

COLUMNS = ("name", "step", "time", "value", "low", "high", "low_rank", "high_rank")


def csv_lines(courses: Iterable[Course]) -> Iterator[str]:
    """A heading and a line a row, without line ends."""
    yield ",".join(COLUMNS)
    for course in courses:
        name = f'"{course.name}"' if "," in course.name else course.name
        columns = (getattr(course, field).tolist() for field in ("steps", "times", *COLUMNS[3:]))
        for row in zip(*columns):
            yield ",".join([name, *map(repr, row)])


def course_object(course: Course) -> dict[str, Any]:
    """A course for JSON."""
    about = {"name": course.name, "unit": course.kind.unit, "together": course.kind.together, "measured": course.measured}
    return about | {"step": course.steps.tolist(), **{field: plain(getattr(course, field)) for field in COLUMNS[3:]}, "time": course.times.tolist()}


def json_pieces(run: str, courses: Iterable[Course], series: Series) -> Iterator[str]:
    """One JSON object in pieces, so that it need not be in memory whole; what `series` found damaged while the courses were read is in it."""
    yield json.dumps({"run": run})[:-1] + ', "metrics": ['
    for i, course in enumerate(courses):
        yield (", " if i else "") + json.dumps(course_object(course), allow_nan=False)
    yield '], "damage": ' + json.dumps(series.damage) + f', "lost": {series.lost}}}'


def plain(values: np.ndarray) -> list[float | int | str]:
    """Numbers for JSON, with texts for those that it lacks."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values.tolist()
    return [value if math.isfinite(value) else repr(value) for value in values.tolist()]


def table_lines(courses: Iterable[Course]) -> Iterator[str]:
    """For each metric its last value, and the lowest and highest of any rank with step and rank."""
    yield f"{'metric':<40} {'unit':<8} {'rows':>8} {'last':>12} {'lowest':>12} {'step/rank':>12} {'highest':>12} {'step/rank':>12}"
    for course in courses:
        if len(course.steps):
            low, high = _extreme(course.low, np.argmin), _extreme(course.high, np.argmax)
            cells = [f"{course.name:<40} {course.kind.unit:<8} {course.measured:>8} {course.value[-1]:>12.6g}"]
            for values, ranks, at in ((course.low, course.low_rank, low), (course.high, course.high_rank, high)):
                cells.append(f"{values[at]:>12.6g} {f'{course.steps[at]}/{ranks[at]}':>12}")
            yield " ".join(cells)


def catalogue_lines(kinds: Iterable[Kind]) -> Iterator[str]:
    """What each metric means and what a bad value looks like."""
    how = {"spread": "mean, lowest and highest rank", "sum": "sum over ranks", "root": "root of the ranks' squares' sum", "same": "all ranks agree"}
    for kind in kinds:
        yield f"{kind.pattern}  [{kind.unit or '–'}; {how[kind.together]}]\n    {kind.meaning}\n    bad: {kind.bad or '–'}"


def _extreme(values: np.ndarray, which: Any) -> int:
    """Where the extreme is; a NaN is one."""
    nan = np.isnan(values)
    return int(nan.argmax()) if nan.any() else int(which(values))
