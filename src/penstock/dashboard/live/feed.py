"""What the viewers of one run share: its reader, and what they are told, made once.

A look at the run is taken in a thread every quarter of a second, or more rarely where it costs much, so that a run takes a twentieth of a core at
most. Viewers wait for it and take from the reader's ring what is behind their position (`ring.py`). Cost: some 0.1 ms a viewer and event. When not
to use it: for courses of the past (`courses.py`).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from penstock.dashboard.facts import alerts_told
from penstock.dashboard.live.reader import Reader, Turn
from penstock.dashboard.live.ring import Position
from penstock.dashboard.plain import to_json

#: Seconds between two looks at a run that trains, and at one that does not; and the most that a costly look spreads them to.
LOOK_S, IDLE_S, MOST_S = 0.25, 1.0, 2.0
#: A look is taken again after so many times what it took of a core.
SHARE = 20.0
#: Seconds between two overviews, between signs of life, and for which a reader stays without viewers.
OVERVIEW_S, PING_S, LINGER_S = 1.0, 15.0, 10.0
#: Steps by which a viewer may be ahead of the reader, whose rows come a little later than those of a query.
AHEAD = 64


class Feed:
    """One run's reader and what its viewers are told; lives in the event loop."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.viewers = 0
        self.overview = ""
        self.alerts = ""
        #: Counts the changes of either.
        self.overviews, self.alert_lists = 0, 0
        self._shown, self._overview_at = {"state": None}, 0.0
        self._changed = asyncio.Condition()
        #: Held while the run is looked at, and while a viewer takes from what was found.
        self.reading = asyncio.Lock()
        self.ended = False
        self._rows: dict[tuple[Position, tuple[str, ...]], str] = {}

    async def keep(self) -> None:
        """Look at the run until nobody has watched it for a while, or its folder is gone."""
        left = time.monotonic()
        self._tell(alerts=True)
        try:
            while (self.viewers or time.monotonic() - left < LINGER_S) and self.reader.run.path.is_dir():
                left = time.monotonic() if self.viewers else left
                steps, cost = await self._look()
                usual = LOOK_S if self._shown["state"] == "running" or steps else IDLE_S
                await asyncio.sleep(min(MOST_S, max(usual, SHARE * cost)))
        finally:
            self.ended = True
            async with self._changed:
                self._changed.notify_all()

    async def _look(self) -> tuple[bool, float]:
        """Look at the run once, and wake the viewers; whether there were new steps, and the seconds of a core that the look took."""
        async with self.reading:
            turn, cost = await asyncio.to_thread(self._turn)
            self._rows.clear()
            self._tell(turn.alerts)
        async with self._changed:
            self._changed.notify_all()
        return turn.steps, cost

    def _turn(self) -> tuple[Turn, float]:
        began = time.thread_time()
        turn = self.reader.turn()
        return turn, time.thread_time() - began

    async def wait(self) -> None:
        """Wait for the next look."""
        async with self._changed:
            await self._changed.wait()

    def rows(self, position: Position, names: tuple[str, ...]) -> str:
        """The rows behind a position as JSON, made once for all who ask alike; empty if none of the names was measured there."""
        key = position, names
        if key not in self._rows:
            told = self.reader.rows(position, names)
            self._rows[key] = to_json(told) if told["courses"] else ""
        return self._rows[key]

    def _tell(self, alerts: bool) -> None:
        now = time.monotonic()
        if now - self._overview_at >= OVERVIEW_S:
            told = self.reader.standing.as_dict()
            if _without_time(told) != _without_time(self._shown):
                self._overview_at, self._shown, self.overview = now, told, to_json(told)
                self.overviews += 1
        if alerts:
            self.alerts = to_json(alerts_told(self.reader.standing.book))
            self.alert_lists += 1


class Viewer:
    """One who watches some metrics and has seen the steps up to `after` (None: those up to now)."""

    def __init__(self, feed: Feed, names: tuple[str, ...], after: Position | None) -> None:
        newest = feed.reader.ring.newest
        self._feed, self._names = feed, names
        self._position = after or newest
        self._overviews, self._alerts, self._said = 0, feed.alert_lists, time.monotonic()
        self._ahead = self._position.generation < 0 and self._position.step > newest.step + AHEAD
        if self._position.generation < 0:
            self._position = Position(newest.generation, self._position.step)

    def news(self) -> list[str]:
        """The events that are due now; the feed must not be looking meanwhile."""
        feed, events = self._feed, []
        if feed.overviews != self._overviews:
            self._overviews = feed.overviews
            events.append(event("overview", feed.overview, self._position))
        if feed.alert_lists != self._alerts:
            self._alerts = feed.alert_lists
            events.append(event("alerts", feed.alerts, self._position))
        events += self._rows()
        now = time.monotonic()
        if not events and now - self._said > 0.9 * PING_S:
            events.append(event("ping", "{}", self._position))
        self._said = now if events else self._said
        return events

    def _rows(self) -> list[str]:
        newest = self._feed.reader.ring.newest
        back = newest.step if self._ahead else self._feed.reader.went_back(self._position)
        if back is not None:
            self._ahead, self._position = False, newest
            return [event("reset", to_json({"through": back}), newest)]
        if newest <= self._position:
            return []
        rows, self._position = self._feed.rows(self._position, self._names), newest
        return [event("rows", rows, newest)] if rows else []


def event(kind: str, data: str, at: Position) -> str:
    """A server-sent event; JSON has no line breaks of its own."""
    return f"event: {kind}\nid: {at}\ndata: {data}\n\n"


def _without_time(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "time"}
