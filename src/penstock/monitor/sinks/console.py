"""Alerts among what the run prints: some lines on stderr, above the live line. Cost: none. When not to use it: where nobody looks at the terminal."""

from __future__ import annotations

import sys
from typing import TextIO

from penstock.monitor.sinks.message import Message


class Console:
    """Prints to a stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def __call__(self, message: Message) -> None:
        """Print a message; raises OSError."""
        clear = "\r\x1b[2K" if self._stream.isatty() else ""
        print(f"{clear}{message.block()}", file=self._stream, flush=True)
