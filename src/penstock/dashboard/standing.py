"""How a run stands, kept up to date from the rows and files that come, so that nothing is read twice while people watch.

`monitor/overview.py` looks at a whole run, which for many ranks takes a quarter of a second. Here that is done when the first viewer comes, when the
run went back, and every `WHOLE_S` seconds; in between step, speed, time left, ranks, alerts and events follow from what is new. Cost: below a
millisecond a look. When not to use it: for a run that nobody watches (one look is enough then).
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penstock.config import UserError
from penstock.dashboard.events import Events
from penstock.dashboard.rows import last_line, setting
from penstock.dashboard.tokens import NAME as TOKENS
from penstock.monitor.alerts import Book
from penstock.monitor.alerts.lines import Following
from penstock.monitor.cost import HOURS
from penstock.monitor.overview import BEHIND, BESIDE, RECENT, Line, Overview, is_watched, overview
from penstock.store.runs import Run, run_state
from penstock.store.snapshots.index import indexed

#: Seconds after which all is looked at anew, and between two looks at the state of the run and its monitor.
WHOLE_S, STATE_S = 60.0, 1.0


@dataclass(frozen=True)
class NewRow:
    """What a step's row says of the run as a whole: the last values of main metrics with the ranks' lowest and highest, and who has the highest."""

    step: int
    time: float
    #: By name: value, low, high, high rank.
    values: dict[str, tuple[float, float, float, int]]
    ranks: tuple[int, ...]


class Standing:
    """How the run in a folder stands; the caller looks, and gives it the rows that come."""

    def __init__(self, run: Run) -> None:
        self._run, self._events, self._book = run, Events(run.path), Book(run.path)
        self._steps = setting(run.path, "train", "steps") or 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._facts: dict[str, float] = {}
        self._evaluating, self._evals = Following(run.path / "metrics" / "eval.jsonl"), dict[int, float]()
        self._wall = _wall_at_snapshot(run)
        self._looked, self._stated = -WHOLE_S, 0.0
        self._now: Overview
        self.look(again=True)

    def look(self, again: bool = False) -> None:
        """Bring up to date what does not come in rows; `again`: all of it."""
        now = time.monotonic()
        self._events.refresh()
        self._book.refresh()
        for line in self._evaluating.read():
            self._evaluated(line)
        if not again and now - self._stated <= STATE_S:
            return
        self._stated, state = now, _state(self._run)
        if again or now - self._looked > WHOLE_S or state != self._now.state:
            self._looked = now
            self._facts = {name: value for name, value in self._facts.items() if name not in BESIDE}
            self._wall = _wall_at_snapshot(self._run)
            self._steps = setting(self._run.path, "train", "steps") or 0
            self._now = overview(self._run.path, state, self._steps)
        else:
            self._now = replace(self._now, watched=is_watched(self._run.path / "metrics", time.time()))

    def rows(self, rows: list[NewRow]) -> None:
        """Take in new rows, the oldest first."""
        for row in rows:
            self._recent.append((row.step, row.time))
            self._facts |= {name: row.values[name][0] for name in (TOKENS, HOURS, "cost/mfu", "cost/ranks") if name in row.values}
        last = rows[-1]
        lines = [_moved(line, last) for line in self._now.lines]
        loss, speed = (_finite(last, name) for name in ("loss/total", "cost/tokens_per_s"))
        ranks = {rank: step for rank, step in self._now.ranks.items() if rank not in last.ranks} | dict.fromkeys(last.ranks, last.step)
        self._now = replace(
            self._now, step=last.step, loss=loss, tokens_per_s=speed if speed is not None else self._now.tokens_per_s, ranks=ranks, lines=lines,
            reporting=sum(step >= last.step - BEHIND for step in ranks.values()),
        )  # fmt: skip

    @property
    def book(self) -> Book:
        """The run's alerts."""
        return self._book

    def as_dict(self) -> dict[str, Any]:
        """The overview as JSON; its `time` is now."""
        open_ = [alert for alert in self._book.alerts.values() if alert.state != "resolved"]
        resolved = len(self._book.alerts) - len(open_)
        a_step = self._seconds_a_step()
        left = max(0, self._steps - self._now.step)
        eta = a_step * left if a_step and self._now.state == "running" else self._now.eta_s if self._now.state == "running" else None
        now = replace(self._now, time=time.time(), open=open_, resolved=resolved, eta_s=eta, steps=self._steps)
        return now.as_dict() | self._more(now, a_step) | {"events": self._events.newest_first}

    def _more(self, now: Overview, a_step: float) -> dict[str, Any]:
        """What the overview of a terminal lacks."""
        last = last_line(self._run.path / "metrics" / "train.jsonl") if TOKENS not in self._facts else {}
        tokens, mfu = self._facts.get(TOKENS, last.get("tokens")), self._facts.get("cost/mfu", now.mfu) or last.get("mfu")
        ranks = self._events.layout["ranks"] if self._events.layout else None
        ranks_of = int(self._facts.get("cost/ranks", ranks or len(now.ranks)))
        step, seconds = self._wall
        seconds += (a_step or float(last.get("step_s") or 0.0)) * max(0, now.step - step)
        hours = self._facts.get(HOURS, now.cost.device_hours)
        cost = now.cost.at(seconds * ranks_of / 3600 if hours is None else hours, now.eta_s, ranks_of).as_dict()
        told = {"mfu": mfu, "tokens": int(tokens) if tokens else None, "ranks_of": ranks_of}
        return told | {"cost": {"seconds": seconds, **cost}, "validation": self._validation()}

    def _evaluated(self, line: dict[str, Any]) -> None:
        """Take in an evaluation; where the run went back, those of later steps no longer count."""
        step, loss = line.get("step"), line.get("val_loss")
        if isinstance(step, int) and isinstance(loss, (int, float)):
            self._evals = {one: value for one, value in self._evals.items() if one < step} | {step: float(loss)}

    def _validation(self) -> dict[str, Any] | None:
        """The newest validation loss, nats a token, and the lowest."""
        if not self._evals:
            return None
        step = max(self._evals)
        return {"step": step, "loss": self._evals[step], "lowest": min(filter(math.isfinite, self._evals.values()), default=None)}

    def _seconds_a_step(self) -> float:
        """Mean seconds from step to step lately; 0 where too few rows came."""
        if len(self._recent) < 2 or self._recent[-1][0] <= self._recent[0][0]:
            return 0.0
        (first, begin), (last, end) = self._recent[0], self._recent[-1]
        return (end - begin) / (last - first)


def _state(run: Run) -> str:
    try:
        state = run_state(run)
    except UserError:
        return "damaged"
    return "unfinished" if state == "new" else state


def _wall_at_snapshot(run: Run) -> tuple[int, float]:
    """Step and seconds of training of the newest snapshot; zeros if there is none."""
    rows = indexed(run.path).rows
    return (rows[-1].step, rows[-1].wall_s) if rows else (0, 0.0)


def _moved(line: Line, row: NewRow) -> Line:
    """The line with its last point moved to the new row: the distance of its points in time stays what it is."""
    if line.name not in row.values:
        return line
    value, low, high, rank = row.values[line.name]
    return replace(line, values=[*line.values[:-1], value], last=value, low=low, high=high, high_rank=rank)


def _finite(row: NewRow, name: str) -> float | None:
    value = row.values.get(name, (np.nan,))[0]
    return float(value) if np.isfinite(value) else None
