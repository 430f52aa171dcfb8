"""A run's last events, as they come, and where its ranks are laid out, which events tell.

Cost: a look at the file's size, and 20 µs a new line. When not to use it: to see whether the history was changed behind our back
(`store/story/history.py` checks its seals, and so does the page of the history).
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, TypedDict

from penstock.dashboard.rows import seconds_of
from penstock.monitor.alerts.lines import Following

HISTORY = "history.jsonl"
#: Where a run writes what it chose by itself, below its `metrics`, and the kinds of that, which its history does not have.
OWN, OWN_KINDS = "event.jsonl", ("balance", "pipeline", "exchange", "micro_batch")
#: Events that are shown with the overview.
SHOWN = 20
#: What stands beside the axes in a layout that an event tells.
_NO_AXES = ("ranks", "threads", "zero", "expert_shard", "expert_replicate")


class Event(TypedDict):
    """Something that happened to a run; `time` is unix seconds, and `seq` None for what it chose by itself."""

    seq: int | None
    time: float
    step: int | None
    kind: str
    text: str


class Layout(TypedDict):
    """How the ranks are laid out: axes by name with their sizes, ranks, and the words of the event that told it."""

    axes: dict[str, int]
    ranks: int | None
    text: str


class Events:
    """Follows the history of the run in a folder."""

    def __init__(self, run: Path) -> None:
        self._following, self._following_own = Following(run / HISTORY), Following(run / "metrics" / OWN)
        self._last: deque[Event] = deque(maxlen=SHOWN)
        self._saves = 0
        self._layout: Layout | None = None

    def refresh(self) -> bool:
        """Take in what came; whether anything had."""
        lines = self._following.read()
        events = own_events(self._following_own.read(), [event_of(line) for line in lines])
        for event in events:
            self._add(event)
        for line in lines:
            self._layout = layout_of(line) or self._layout
        return bool(events)

    def _add(self, event: Event) -> None:
        """Snapshots that follow each other are one event, or nothing else would be seen."""
        self._saves = self._saves + 1 if event["kind"] == "snapshot" else 0
        if self._saves > 1:
            self._last.pop()
            event["text"] += f", the last of {self._saves}"
        self._last.append(event)

    @property
    def newest_first(self) -> list[Event]:
        """The last events."""
        return list(reversed(self._last))

    @property
    def layout(self) -> Layout | None:
        """How the ranks are laid out; None if no event tells."""
        return self._layout


def event_of(line: dict[str, Any]) -> Event:
    """An event of a line of the history, or of an entry of its story."""
    seq, step = line.get("seq"), line.get("step")
    whole = (seq if type(seq) is int else None), (step if type(step) is int else None)
    return Event(seq=whole[0], time=seconds_of(line.get("time")), step=whole[1], kind=str(line.get("kind", "")), text=str(line.get("text", "")))


def own_events(lines: list[dict[str, Any]], among: list[Event]) -> list[Event]:
    """Events of a history with those of lines of what the run chose by itself, by their times."""
    own = [event_of(line | {"kind": line["what"]}) for line in lines if line.get("what") in OWN_KINDS]
    return sorted(among + own, key=lambda event: event["time"]) if own else among


def layout_of(line: dict[str, Any]) -> Layout | None:
    """The layout that an event tells, if it does."""
    data = line.get("data")
    told = data.get("layout") if isinstance(data, dict) else None
    if not isinstance(told, dict):
        return None
    axes = {str(name): size for name, size in told.items() if type(size) is int and name not in _NO_AXES}
    ranks = told.get("ranks")
    return Layout(axes=axes, ranks=ranks if type(ranks) is int else None, text=str(line.get("text", "")))
