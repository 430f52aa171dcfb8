"""The book of a run's alerts, `RUN/alerts.jsonl`: every change of an alert is a line with the whole of it, and so is what people say to it.

    {"time": …, "event": "opened" | "changed" | "resolved" | "acted", "alert": {…}}
    {"time": …, "event": "acknowledged", "id": …, "who": …}      {"time": …, "event": "silence", "kind": …, "until": … or null, "who": …}

What stands in it is the last line of each alert, with an acknowledgement kept until it is resolved. The monitor and commands write it at the same
time. A killed process or a full disk loses at most the line that it was writing. Cost: one flush a change. When not to use it: as history of the
run, which is sealed (`store/story/history.py`) and says what was done because of an alert.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.monitor.alerts.alert import Alert, alert_of
from penstock.monitor.alerts.lines import Following, append

BOOK = "alerts.jsonl"
#: Lines that wait for a disk that takes none; older ones are left out.
WAITING = 256
#: Never silent any more, and silent for ever.
NEVER, EVER = 0.0, float("inf")


class Book:
    """A run's alerts by id, oldest first, and until when kinds are silenced (unix seconds)."""

    def __init__(self, run: Path) -> None:
        self.path = run / BOOK
        self.alerts: dict[str, Alert] = {}
        self.silenced: dict[str, float] = {}
        self._following = Following(self.path)
        self._waiting: deque[dict[str, Any]] = deque(maxlen=WAITING)

    @property
    def damaged(self) -> int:
        """Lines that could not be read."""
        return self._following.damaged

    def refresh(self) -> None:
        """Take in what was written since, by anybody; and try again to write what the disk did not take."""
        while self._waiting:
            try:
                append(self.path, self._waiting[0])
            except OSError:
                break
            self._waiting.popleft()
        for line in self._following.read():
            self._take(line)

    def put(self, event: str, alert: Alert, **more: Any) -> None:
        """Write down a change of an alert. A disk that does not take it gets it later; the book holds it all the same."""
        line = {"time": time.time(), "event": event, "alert": alert.as_dict()} | more
        try:
            append(self.path, line)
        except OSError:
            self._waiting.append(line)
            self._take(line)
        self.refresh()

    def acknowledge(self, id: str, who: str) -> None:
        """Say that somebody knows of an alert; raises OSError."""
        append(self.path, {"time": time.time(), "event": "acknowledged", "id": id, "who": who})
        self.refresh()

    def silence(self, kind: str, who: str, seconds: float | None = None) -> None:
        """Tell nobody of a kind of alert any more, or for some time; raises OSError."""
        until = None if seconds is None else time.time() + seconds
        append(self.path, {"time": time.time(), "event": "silence", "kind": kind, "until": until, "who": who})
        self.refresh()

    def is_silenced(self, kind: str, now: float) -> bool:
        """Whether nobody is to be told of a kind of alert."""
        return self.silenced.get(kind, NEVER) > now

    def _take(self, line: dict[str, Any]) -> None:
        try:
            if line["event"] == "silence":
                self.silenced[str(line["kind"])] = EVER if line["until"] is None else float(line["until"])
            elif line["event"] == "acknowledged":
                self._acknowledge(str(line["id"]), str(line.get("who", "")))
            else:
                alert = alert_of(line["alert"])
                known = self.alerts.get(alert.id)
                keeps = known is not None and known.state == "acknowledged" and alert.state == "open" and line["event"] != "opened"
                self.alerts[alert.id] = replace(alert, state="acknowledged") if keeps else alert
        except (KeyError, TypeError, ValueError):
            self._following.damaged += 1

    def _acknowledge(self, id: str, who: str) -> None:
        alert = self.alerts.get(id)
        if alert is not None and alert.state in ("open", "silenced"):
            self.alerts[id] = alert.noting(f"acknowledged by {who}", state="acknowledged")


def read_alerts(run: Path) -> Book:
    """The book of a run as it is now, running or not; empty where no alert ever was."""
    book = Book(run)
    book.refresh()
    return book
