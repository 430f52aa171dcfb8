"""Who watches what: for each run that is watched one feed (`feed.py`), which its viewers share.

A viewer who does not fetch holds up nobody: it has a place in the run's ring, and no queue. A run that nobody watches any more is left alone. Cost:
none while nobody watches. When not to use it: for a run that has ended and is not looked at live.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from penstock.dashboard.live.feed import PING_S, Feed, Viewer
from penstock.dashboard.live.reader import Reader
from penstock.dashboard.live.ring import Position
from penstock.dashboard.plain import Refusal
from penstock.store.runs import Run

#: Viewers of all runs at most.
MOST_VIEWERS = 256


class Hub:
    """The feeds of all runs that are watched."""

    def __init__(self) -> None:
        self._feeds: dict[Path, Feed] = {}
        self._making: dict[Path, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._viewers = 0
        #: When a viewer was there last (`time.monotonic`); 0 if none ever was.
        self.watched_at = 0.0

    @property
    def viewers(self) -> int:
        """How many watch now."""
        return self._viewers

    def overview(self, run: Path) -> str | None:
        """The overview of a run that is watched, as JSON; None for another."""
        feed = self._feeds.get(run)
        return feed.overview if feed is not None and feed.overview else None

    async def stream(self, run: Run, names: tuple[str, ...], after: Position | None) -> AsyncIterator[str]:
        """The events for a viewer of some metrics, who has seen the steps up to `after` (None: those up to now)."""
        if self._viewers >= MOST_VIEWERS:
            raise Refusal(503, f"{MOST_VIEWERS} viewers watch already; close some pages")
        feed = await self._feed(run)
        return self._events(feed, names, after)

    async def close(self) -> None:
        """End all feeds."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _feed(self, run: Run) -> Feed:
        async with self._making.setdefault(run.path, asyncio.Lock()):
            if run.path not in self._feeds:
                feed = self._feeds[run.path] = Feed(await asyncio.to_thread(Reader, run))
                task = asyncio.create_task(feed.keep())
                self._tasks.add(task)
                task.add_done_callback(lambda done: self._ended(run.path, done))
            return self._feeds[run.path]

    def _ended(self, run: Path, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._feeds.pop(run, None)
        self._making.pop(run, None)
        if not task.cancelled() and (error := task.exception()):
            traceback.print_exception(error)  # a fault of ours; its viewers come again and get a new feed

    async def _events(self, feed: Feed, names: tuple[str, ...], after: Position | None) -> AsyncIterator[str]:
        feed.viewers += 1
        self._viewers += 1
        try:
            yield "retry: 1000\n\n"
            viewer = Viewer(feed, names, after)
            while not feed.ended:
                async with feed.reading:
                    events = viewer.news()
                for one in events:
                    yield one
                with suppress(TimeoutError):
                    await asyncio.wait_for(feed.wait(), PING_S)
        finally:
            feed.viewers -= 1
            self._viewers -= 1
            self.watched_at = time.monotonic()
