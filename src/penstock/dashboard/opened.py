"""The metrics of runs, kept open between requests: opening a long store takes two reads a chunk, and names take a walk through the ranks' logs.

A few runs are open at a time; the one that was asked for the longest ago is closed for another. One request at a time reads a run, as its files are
shared. Cost: some tens of bytes a stored step. When not to use it: for
the rows that come while a run trains (`live/`).
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from penstock.dashboard.plain import Refusal
from penstock.monitor.series import Kinds, Series, read_kinds

T = TypeVar("T")
#: Runs that are open at most, and seconds for which names, and the like, are not looked for again.
MOST_OPEN, KEPT_S = 6, 5.0
#: Longest wait for others who ask the same run, seconds.
WAIT_S = 30.0


class Metrics:
    """One run's metrics, while `Opened.metrics` lends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.series = Series(folder, read_kinds(folder) or Kinds())
        self._kept: dict[str, tuple[float, Any]] = {}

    def keep(self, name: str, make: Callable[[], T], seconds: float = KEPT_S) -> T:
        """What `make` made so many seconds ago at most."""
        now = time.monotonic()
        if name not in self._kept or now - self._kept[name][0] > seconds:
            self._kept[name] = (now, make())
        kept: T = self._kept[name][1]
        return kept

    def names(self) -> list[str]:
        """All metrics that were measured, sorted."""
        return self.keep("names", self.series.names)


class Opened:
    """Lends the metrics of runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[Path, int], Metrics] = OrderedDict()

    @contextmanager
    def metrics(self, run: Path) -> Iterator[Metrics]:
        """The metrics of the run in a folder, for one at a time."""
        folder = run / "metrics"
        key = folder, place_of(folder)
        with self._lock:
            found = self._open.pop(key, None) or Metrics(folder)
            self._open[key] = found
            closing = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - MOST_OPEN)]
        for one in closing:
            with one.lock:
                one.series.close()
        with held(found.lock, run.name):
            yield found


@contextmanager
def held(lock: threading.Lock, what: str) -> Iterator[None]:
    """Hold a lock; raises `Refusal` where others hold it for long."""
    if not lock.acquire(timeout=WAIT_S):
        raise Refusal(503, f"others have asked for {what} for {WAIT_S:.0f} s; ask again later, or for less at once")
    try:
        yield
    finally:
        lock.release()


def place_of(folder: Path) -> int:
    """What tells a folder from another that took its name."""
    try:
        return os.stat(folder).st_ino
    except OSError:
        return 0
