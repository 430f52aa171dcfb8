"""Alerts to a command of one's own: it is started for every message, with the message as JSON on its standard input.

It is started without a shell, in a session of its own, and killed with all that it started when it takes longer than `TIMEOUT_S`; what it prints
goes nowhere. Cost: a process a message. When not to use it: for what a webhook can do.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from contextlib import suppress

from penstock.monitor.sinks.message import Message

TIMEOUT_S = 30.0


class CommandSink:
    """Runs a command line."""

    def __init__(self, command: str, timeout_s: float = TIMEOUT_S) -> None:
        self._words, self._timeout_s = shlex.split(command), timeout_s

    def __call__(self, message: Message) -> None:
        """Run it for a message; raises OSError."""
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, start_new_session=True)
        try:
            process.communicate(json.dumps(message.as_dict()).encode(), self._timeout_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise OSError(f"{self._words[0]} took longer than {self._timeout_s:.0f} s and was killed") from None
        if process.returncode:
            raise OSError(f"{self._words[0]} ended with exit code {process.returncode}")
