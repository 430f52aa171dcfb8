"""What a run's history tells of deaths, failures and recoveries, as findings; and what a recovery puts an end to.

The history is written by whoever watches over the ranks, in the moment in which a death is noticed, so an alert follows within a look at the file.
Cost: a look at the file's size ten times a second. When not to use it: to read the history with its seals (`store/story/history.py`).
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from penstock.monitor.alerts.lines import Following
from penstock.monitor.alerts.policy import OF_RANK
from penstock.monitor.detect import Finding

HISTORY = "history.jsonl"
#: What a recovery of the run, or its going on, puts an end to.
ENDS = ("rank_lost", "run_lost", "run_failed", "hang")


@dataclass(frozen=True)
class Told:
    """Something that the history tells, at `time` (unix seconds): a finding, or what has passed and why.

    Where ranks left, what was told of one by its number has passed, as the number may be another's now.
    `done`: what was done about the finding, which so has passed; `back`: the step to which the run went back, past all that began later.
    """

    time: float
    finding: Finding | None = None
    ends: tuple[str, ...] = ()
    why: str = ""
    done: str = ""
    back: int | None = None


class RunEvents:
    """Follows the history of a run; events up to number `seq` were told before. Where none were, those before its last start are past."""

    def __init__(self, run: Path, seq: int = 0) -> None:
        self._following = Following(run / HISTORY)
        self.seq = seq

    def read(self) -> list[Told]:
        """What came since the last call."""
        found, events = [], self._following.read()
        if not self.seq:
            starts = [i for i, event in enumerate(events) if event.get("kind") in ("start", "resume")]
            events = events[starts[-1] :] if starts else events
        for event in events:
            if isinstance(event.get("seq"), int) and event["seq"] > self.seq:
                self.seq = event["seq"]
                found += [told] if (told := told_by(event)) else []
        return found


def told_by(event: dict[str, Any]) -> Told | None:
    """What an event of the history has to do with alerts."""
    kind, text, step, at = event.get("kind"), str(event.get("text", "")), int(event.get("step") or 0), _seconds(event.get("time"))
    if kind == "recovery" or (kind == "resume" and step):
        return Told(at, ends=ENDS, why=f"the run went on after step {step}: {text}")
    data: dict[str, Any] = told if isinstance(told := event.get("data"), dict) else {}
    if kind == "change" and isinstance(data.get("left_out"), str):
        return Told(at, _finding(data["left_out"], step + 1, None, text), done="its batch was left out")
    if kind == "change" and isinstance(way := data.get("rolled_back"), dict):
        found = _finding(str(way["kind"]), int(way["since"]), None, str(way["why"])) if way.get("kind") else None
        return Told(at, found, why=text, back=step)
    if kind == "change" and data.get("left"):
        return Told(at, ends=OF_RANK, why=text)
    if kind == "alert" and "could not be saved" in text:
        return Told(at, _finding("snapshot_failed", step, None, f"step {step} {text}"))
    if kind == "failure":
        rank = re.search(r"\brank (\d+)", text)
        lost = rank is not None and re.search(r"was killed|failed with|hung|ended", text) is not None
        what = "non_finite" if re.search(r"not finite|\bnan\b", text, re.I) else "rank_lost" if lost else "run_failed"
        return Told(at, _finding(what, step, int(rank[1]) if rank and what == "rank_lost" else None, text))
    return None


def _finding(kind: str, step: int, rank: int | None, text: str) -> Finding:
    return Finding(kind, step, step, 1.0, rank, None, (), text)


def _seconds(text: Any) -> float:
    """Unix seconds of a time of the history; now, if it is none."""
    with suppress(ValueError):
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    return time.time()
