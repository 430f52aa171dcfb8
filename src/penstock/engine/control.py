"""Asking a run to stop: Ctrl-C, or SIGTERM from a scheduler, ends it after the step it is in.

The handler only sets a flag. The step's own collective carries the flag to all ranks (`step.py`), so every rank leaves
the loop after the same step. A second Ctrl-C stops at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Context manager that turns SIGINT and SIGTERM into `requested`; restores the old handlers on leaving.

    With `supervised` (a rank below `--nproc`) Ctrl-C is left to the launcher, which sends each rank one SIGTERM.
    """

    def __init__(self, supervised: bool) -> None:
        self.requested = False
        self._supervised = supervised
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_signal)
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN if self._supervised else self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if not self._supervised:
            print("\nstopping after this step, then saving; press Ctrl-C again to stop at once without saving", file=sys.stderr, flush=True)
