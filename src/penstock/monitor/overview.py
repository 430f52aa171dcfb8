"""How a run stands, from its folder alone: where it is, how fast, which ranks report, the course of its main metrics, its open alerts.

Running, finished or crashed runs and read-only copies are looked at alike, with or without a monitor. Cost: a query of some metrics and the newest
part of every rank's log. When not to use it: for single values by step (`series/query.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penstock.monitor.alerts import Alert, read_alerts
from penstock.monitor.cost import HOURS, Cost, price_of
from penstock.monitor.series import Bound, Course, Kinds, RowTail, Series, read_kinds
from penstock.monitor.series.rows import parts_of, rank_folders

#: Metrics that are shown, and what people call them.
MAIN = {
    "loss/total": "loss", "cost/tokens_per_s": "tokens/s", "grad_norm/total": "gradient norm", "time/step": "step, s", "time/own": "own, s",
    "wait/total": "waits, s", "memory/resident": "memory", "memory/allocated": "device memory",
}  # fmt: skip
#: Metrics that are told without their course.
BESIDE = (HOURS, "cost/mfu")
#: Steps behind the first that a rank may be and still be reporting; seconds after which a monitor that notes nothing is gone.
BEHIND, GONE_S = 2, 10.0
#: Steps that the speed is a mean of.
RECENT = 50


@dataclass(frozen=True)
class Line:
    """A metric's course for people: values oldest first, the last one, and the ranks' lowest and highest."""

    name: str
    title: str
    unit: str
    values: list[float]
    last: float
    low: float
    high: float
    high_rank: int


@dataclass(frozen=True)
class Overview:
    """How a run stands at `time` (unix seconds)."""

    run: str
    state: str
    time: float
    step: int
    steps: int
    loss: float | None
    tokens_per_s: float | None
    eta_s: float | None
    #: Step of each rank's last row.
    ranks: dict[int, int]
    reporting: int
    watched: bool
    lines: list[Line] = field(default_factory=list)
    open: list[Alert] = field(default_factory=list)
    resolved: int = 0
    cost: Cost = field(default_factory=Cost)
    #: Rows that came when their step had gone to the detectors without them; and that a disk did not take, or were damaged.
    rows_late: int = 0
    rows_lost: int = 0
    #: Share of the hardware's peak; as the speed that of the last step, or the mean of all when the run has ended.
    mfu: float | None = None

    @property
    def health(self) -> str:
        """In some words: healthy, or what is not."""
        bad = [alert for alert in self.open if alert.level != "notice" and alert.state != "silenced"]
        if self.state in ("failed",):
            return self.state
        if bad:
            return f"{len(bad)} open alert{'s' * (len(bad) != 1)}"
        return "healthy" if self.step else "no steps yet"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        told = {name: value for name, value in vars(self).items() if name not in ("lines", "open", "cost")}
        lines = {line.name: {name: value for name, value in vars(line).items() if name != "name"} for line in self.lines}
        return told | {"health": self.health, "cost": self.cost.as_dict(), "metrics": lines, "alerts": [alert.as_dict() for alert in self.open]}


def overview(run: Path, state: str, steps: int, points: int = 60) -> Overview:
    """How a run in a `state` of so many `steps` stands, with about `points` values of each course."""
    folder = run / "metrics"
    series = Series(folder, read_kinds(folder) or Kinds())
    try:
        known = set(series.names())
        courses = {course.name: course for course in series.courses([name for name in (*MAIN, *BESIDE) if name in known], points=points)}
        (step, _), recent = series.last_row(), _recent_seconds(series, known)
    finally:
        series.close()
    book, ranks, now, ended = read_alerts(run), last_steps(folder), time.time(), _ended(run, state, step)
    hours, mfu = (_last(courses.pop(name, None)) for name in BESIDE)
    loss, speed = _last(courses.get("loss/total")), ended.get("tokens_per_s") or _last(courses.get("cost/tokens_per_s"))
    noted = _noted(folder)
    eta = recent * (steps - step) if recent and state == "running" else None
    cost = price_of(run).at((ended.get("cost") or {}).get("device_hours", hours), eta, len(ranks))
    reporting = sum(last >= max(ranks.values()) - BEHIND for last in ranks.values())
    return Overview(
        run.name, state, now, step, steps, loss, speed, eta, ranks, reporting if state == "running" else 0, is_watched(folder, now),
        [_line(course) for course in courses.values() if len(course.value)],
        [alert for alert in book.alerts.values() if alert.state != "resolved"],
        sum(alert.state == "resolved" for alert in book.alerts.values()), cost, int(noted.get("rows_late", 0)), int(noted.get("rows_lost", 0)),
        ended.get("mfu") or mfu,
    )  # fmt: skip


def last_steps(folder: Path) -> dict[int, int]:
    """The step of the last row of each rank of the newest generation; `folder` is the run's `metrics`."""
    found: dict[int, tuple[int, int]] = {}
    for rank, path in rank_folders(folder).items():
        for generation, n, _ in reversed(parts_of(path)):
            tail, last = RowTail(path, behind=(generation, n - 1)), None
            while rows := tail.read():
                last = rows[-1].about.generation, int(rows[-1].steps[-1])
            if last is not None:
                found[rank] = last
                break
    newest = max((generation for generation, _ in found.values()), default=0)
    return {rank: step for rank, (generation, step) in found.items() if generation == newest}


def _recent_seconds(series: Series, known: set[str]) -> float:
    """Seconds from step to step lately, evaluations and snapshots among them; 0 where too few steps are known."""
    if "time/step" not in known:
        return 0.0
    [course] = series.courses(["time/step"], Bound(step=max(0, series.last_row()[0] - RECENT)))
    steps, times = course.steps, course.times
    return float((times[-1] - times[0]) / (steps[-1] - steps[0])) if len(steps) > 1 and steps[-1] > steps[0] else 0.0


def _line(course: Course) -> Line:
    values: Sequence[float] = [float(value) for value in course.value]
    return Line(
        course.name, MAIN[course.name], course.kind.unit, list(values), values[-1], float(course.low[-1]), float(course.high[-1]),
        int(course.high_rank[-1]),
    )  # fmt: skip


def _ended(run: Path, state: str, step: int) -> dict[str, Any]:
    """The summary of a run that has ended at a step: what came after its last row, a last evaluation say, is in that alone."""
    with suppress(OSError, ValueError, AttributeError):
        told = json.loads((run / "summary.json").read_text(encoding="utf-8")) if state != "running" else {}
        return dict(told) if told.get("step") == step else {}
    return {}


def _last(course: Course | None) -> float | None:
    return float(course.value[-1]) if course is not None and len(course.value) and np.isfinite(course.value[-1]) else None


def is_watched(folder: Path, now: float) -> bool:
    """Whether the run's monitor noted how far it is a short while before `now` (unix seconds); `folder` is the run's `metrics`."""
    return now - _noted(folder).get("time", 0.0) < GONE_S


def watched_to(folder: Path) -> int | None:
    """The last step that a monitor of the run has looked at, None if no monitor has told of any; `folder` is the run's `metrics`."""
    step = _noted(folder).get("step", 0.0)
    return int(step) or None


def _noted(folder: Path) -> dict[str, float]:
    """What the run's monitor noted last, of numbers; nothing if it never did."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        told = json.loads((folder / "monitor.json").read_text(encoding="utf-8"))
        return {name: float(value) for name, value in told.items() if isinstance(value, (int, float))}
    return {}
