"""A thread beside the training thread, which does what need not be done in it: build and write rows, look at tokens and at the host.

The training thread hands over a piece of work and goes on; it never waits, not even for a disk that hangs, and it wakes nobody: to wake a thread
takes a call of the kernel, some 40 µs, to leave a piece of work a few. The thread comes by itself every `ROUND_S`, and is woken only where `HASTE`
pieces wait. What finds too much waiting before it is not done, which `do` says and the caller counts. Work is done in the order in which it came,
so a row finds what was found out of its step before. Work that raises is counted, and said once.

Cost: the work takes a share of another core, and the interpreter's lock for fractions of a millisecond; so does coming by, for some µs. When not to
use it: for what must be done when `do` returns.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

#: Seconds between two calls of the periodic work, and between two looks at what waits.
PERIOD_S, ROUND_S = 1.0, 0.1
#: Pieces of work that may wait, and for which the thread is woken.
MOST_WAITING, HASTE = 64, 8
#: Seconds that are waited for the thread to end.
END_S = 5.0


class Aside:
    """The thread; ends with `close`."""

    def __init__(self, periodic: Callable[[], None], most_waiting: int = MOST_WAITING) -> None:
        """`periodic` is called every `PERIOD_S` seconds, for the first time at once."""
        self._periodic = periodic
        self._work: deque[Callable[[], None]] = deque()
        self._most, self._closing, self._bell = most_waiting, False, threading.Event()
        #: Pieces of work that raised.
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="penstock-metrics", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> bool:
        """Have this done; False if too much is waiting."""
        waiting = len(self._work)
        if waiting >= self._most:
            return False
        self._work.append(work)
        if waiting + 1 >= HASTE:
            self._bell.set()
        return True

    def close(self) -> None:
        """Have what is waiting done, and let the thread end; it is not waited for beyond `END_S`."""
        self._closing = True
        self._bell.set()
        self._thread.join(END_S)

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            closing = self._closing
            if time.monotonic() >= due:
                due = time.monotonic() + PERIOD_S
                self._try(self._periodic)
            while self._work:
                self._try(self._work.popleft())
            if closing:
                return
            self._bell.wait(ROUND_S)
            self._bell.clear()

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # metrics end no training
            self.failures += 1
            if self.failures == 1:
                traceback.print_exc(file=sys.stderr)
