"""A thread beside the training thread that measures what need not be measured in it: the host, the tokens of a step, and traces to be written.

The training thread hands over what it has read (a reference, no copy) and goes on; when its row is due it takes what has come of it, and never
waits: what is late is missed in that row and counted. Cost: the hand-over, microseconds; the work itself takes a share of one core for fractions of
a millisecond a step. When not to use it: for what must be in the row of its step whatever happens.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from penstock.monitor.bus.host import HostGauge
from penstock.monitor.bus.spans import REQUEST, SpanRing
from penstock.monitor.bus.tokens import TokenWatch

#: Seconds between two readings of the host.
PERIOD_S = 1.0
#: Steps whose tokens may wait for the thread.
WAITING = 2
#: Seconds that a rank waits for the thread to end.
END_S = 5.0

Batches = tuple[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[np.ndarray | None]]


class Aside:
    """The thread of one rank; ends with `close`."""

    def __init__(self, gauge: HostGauge, tokens: TokenWatch, spans: SpanRing, folder: Path, rank: int, every_s: float = 0.0) -> None:
        """Spans go below `folder`, the run's `metrics`, when asked for, and every `every_s` seconds and at the end unless that is 0."""
        self._gauge, self._tokens, self._spans, self._folder, self._rank, self._every = gauge, tokens, spans, folder, rank, every_s
        self._work: queue.Queue[tuple[int, Batches] | None] = queue.Queue(WAITING)
        self._came: dict[int, np.ndarray] = {}
        self._host: dict[str, float] = gauge.read()
        self._fresh = True
        self._written, self._asked = time.time(), time.time()
        #: Steps whose tokens nobody looked at, as the thread was behind; and those whose figures came too late for their row.
        self.missed, self.late = 0, 0
        self._thread = threading.Thread(target=self._run, name="penstock-metrics", daemon=True)
        self._thread.start()

    @property
    def spans_file(self) -> Path:
        """Where this rank's spans are written."""
        return self._folder / f"rank-{self._rank:05d}" / "spans.json"

    def look_at(self, step: int, batches: Batches) -> None:
        """Have the tokens of a step looked at, which nobody may change any more."""
        try:
            self._work.put_nowait((step, batches))
        except queue.Full:
            self.missed += 1

    def tokens_of(self, step: int) -> np.ndarray | None:
        """What came of the tokens of a step (`tokens.NAMES`), None if that is not there yet; earlier ones are forgotten."""
        found = self._came.pop(step, None)
        if found is None:
            self.late += 1
        for old in [one for one in self._came if one < step]:
            self._came.pop(old, None)
        return found

    def host(self) -> dict[str, float]:
        """The figures of the host, if there are newer ones than were asked for last; else none."""
        if not self._fresh:
            return {}
        self._fresh = False
        return self._host

    def close(self) -> None:
        """Let the thread end; it is not waited for beyond `END_S`."""
        with suppress(queue.Full):
            self._work.put(None, timeout=END_S)
        self._thread.join(END_S)

    def _run(self) -> None:
        due = time.monotonic() + PERIOD_S
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + PERIOD_S
                self._host, self._fresh = self._gauge.read(), True
                self._write_spans()
            try:
                work = self._work.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                continue
            if work is None:
                if self._every:
                    self._spans.write(self.spans_file, self._rank)
                return
            step, (tokens, targets, documents) = work
            self._came[step] = self._tokens.look(tokens, targets, documents)

    def _write_spans(self) -> None:
        """Write the spans if that is due, or was asked for since they were written."""
        asked = 0.0
        with suppress(OSError):
            asked = (self._folder / REQUEST).stat().st_mtime
        now = time.time()
        if asked > self._asked or (self._every and now - self._written >= self._every):
            self._spans.write(self.spans_file, self._rank)
            self._written = now
        self._asked = max(self._asked, asked)
