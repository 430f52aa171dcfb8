"""One rank's process as the supervisor sees it."""

from __future__ import annotations

import signal
from collections.abc import Collection, Mapping
from pathlib import Path

from penstock.engine.starting.template import Child, wait_for_all

#: Longest wait, seconds, for a process that was killed to be gone.
GONE_S = 10.0


class Member(Child):
    """Process `number` of a run, which works for `folder`."""

    def __init__(self, number: int, folder: Path, arguments: Collection[str], environment: Mapping[str, str]) -> None:
        super().__init__("penstock.engine.survive.member", [str(folder), str(number), *arguments], environment)
        self.number = number

    def end(self) -> None:
        """Kill it, if it lives."""
        self.send_signal(signal.SIGKILL)
        wait_for_all([self], GONE_S)
