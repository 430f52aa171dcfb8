"""A thread beside the training thread, which does what need not be done in it: build and write rows, look at tokens and at the host.

The training thread hands over a piece of work and goes on; it never waits, not even for a disk that hangs. What finds too much waiting before it is
not done, which `do` says and the caller counts. Work is done in the order in which it came, so a row finds what was found out of its step before.
Work that raises is counted, and said once.

Cost: handing over takes some 2 µs; the work takes a share of another core, and the interpreter's lock for fractions of a millisecond. When not to
use it: for what must be done when `do` returns.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable

#: Seconds between two calls of the periodic work.
PERIOD_S = 1.0
#: Pieces of work that may wait.
MOST_WAITING = 64
#: Seconds that are waited for the thread to end.
END_S = 5.0


class Aside:
    """The thread; ends with `close`."""

    def __init__(self, periodic: Callable[[], None], most_waiting: int = MOST_WAITING) -> None:
        """`periodic` is called every `PERIOD_S` seconds, for the first time at once."""
        self._periodic = periodic
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # its `put` never gives up the interpreter's lock
        self._most = most_waiting
        #: Pieces of work that raised.
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="penstock-metrics", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> bool:
        """Have this done; False if too much is waiting."""
        if self._work.qsize() >= self._most:
            return False
        self._work.put(work)
        return True

    def close(self) -> None:
        """Have what is waiting done, and let the thread end; it is not waited for beyond `END_S`."""
        self._work.put(None)
        self._thread.join(END_S)

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + PERIOD_S
                self._try(self._periodic)
            try:
                work = self._work.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                continue
            if work is None:
                return
            self._try(work)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # metrics end no training
            self.failures += 1
            if self.failures == 1:
                traceback.print_exc(file=sys.stderr)
