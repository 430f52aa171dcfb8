"""Helpers beside a training run let it go first.

Linux shares a core between *sessions* before it does between processes (autogroups, sched(7)), and a process's own niceness counts only within its
own session. So a helper that has a session to itself, so that Ctrl-C at the terminal is not its affair, would take as much as the whole training
whatever its niceness; its session has to step back, too. Cost: two system calls. When not to use it: for a process in a session that others share.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def step_back(pid: int, niceness: int) -> None:
    """Have process `pid`, started with a session of its own, run with this niceness among all others; where the system refuses it runs as any."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness), encoding="ascii")
