"""A thread that hands messages to one sink: whoever has a message never waits, however slow or dead the sink is.

Messages wait in a queue of `MOST`; when it is full the oldest is left out and counted. One that fails is tried again after 1, 2, 4 s, … up to
`TRIES` times in all, then it is left out; the first failure of a row is said. Each try has a deadline of its own, set by the sink. Cost: a thread
that sleeps. When not to use it: for what must not be lost; the book of alerts is that.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from penstock.monitor.sinks.message import Message

MOST, TRIES, FIRST_WAIT_S = 64, 5, 1.0

Send = Callable[[Message], None]


class Worker:
    """Hands messages to `send`, which raises OSError or ValueError where it fails; `say` is told of failures."""

    def __init__(self, name: str, send: Send, say: Callable[[str], None], first_wait_s: float = FIRST_WAIT_S) -> None:
        self.name, self._send, self._say, self._first_wait_s = name, send, say, first_wait_s
        self._queue: deque[Message] = deque()
        self._changed = threading.Condition()
        self._closing = self._failing = False
        #: Messages that were handed over, and that were left out.
        self.sent = self.left_out = 0
        self._thread = threading.Thread(target=self._work, name=f"penstock-sink-{name}", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Have a message sent; returns at once."""
        with self._changed:
            if len(self._queue) >= MOST:
                self._queue.popleft()
                self.left_out += 1
            self._queue.append(message)
            self._changed.notify()

    def close(self, deadline_s: float) -> None:
        """Take no more waits between tries, and wait so long at most for what is in the queue."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(deadline_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                message = self._queue.popleft()
            self._hand_over(message)

    def _hand_over(self, message: Message) -> None:
        for attempt in range(TRIES):
            try:
                self._send(message)
                self.sent, self._failing = self.sent + 1, False
                return
            except Exception as error:  # a sink of any kind must not end the thread
                if not self._failing:
                    self._say(f"{self.name} was not told of {message.alert.id}: {error}")
                self._failing = True
            if self._closing or attempt == TRIES - 1:
                break
            self._pause(self._first_wait_s * 2**attempt)
        self.left_out += 1

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._changed:
            while not self._closing and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
