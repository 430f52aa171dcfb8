"""One rank's process as the supervisor sees it: started, waited for with the others, ended.

On Linux a process's end makes its pidfd readable, so a death is seen at once; elsewhere processes are looked at every few hundredths of a second.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

#: Seconds between two looks where the system does not tell of ends.
LOOK_S = 0.02


class Member:
    """Process `number` of a run, which works for `folder`."""

    def __init__(self, number: int, folder: Path, arguments: Collection[str], environment: Mapping[str, str]) -> None:
        self.number = number
        command = [sys.executable, "-m", "penstock.engine.survive.member", str(folder), str(number), *arguments]
        self.process = subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL)
        self.pidfd = os.pidfd_open(self.process.pid) if hasattr(os, "pidfd_open") else -1

    @property
    def pid(self) -> int:
        """Its number in the system."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None while it lives."""
        return self.process.poll()

    def send_signal(self, number: int, /) -> None:
        """Send it a signal, if it lives."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def end(self) -> None:
        """Kill it, if it lives, and forget it."""
        self.process.kill()
        self.process.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def wait_for_end(members: Collection[Member], seconds: float) -> list[Member]:
    """Those that have ended, as soon as there are any, or none after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        ended = [member for member in members if member.exit_code() is not None]
        left = end - time.monotonic()
        if ended or left <= 0:
            return ended
        files = [member.pidfd for member in members if member.pidfd >= 0]
        if len(files) == len(members) and files:
            select.select(files, [], [], left)
        else:
            time.sleep(min(LOOK_S, left))
