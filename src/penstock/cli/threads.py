"""How OpenMP threads wait for each other: they spin a little on a host that is free, and sleep on one that is busy.

A training step of a small model crosses a few hundred parallel regions, some tens of microseconds apart. Threads that sleep between them
are woken for each: with both of two cores free, a step took 1.7 times as long as with threads that spin for so short a time. Where
something else wants the cores, spinning takes them from those one waits for: a step beside a dozen busy processes was 10 times
slower (docs/log.md). Which of the two it is, is read once, when a command starts; the user's own setting wins.

Only GNU's OpenMP, which torch uses on Linux, reads these. Cost: nothing. When it errs: on a host that is free now and busy later; set
OMP_WAIT_POLICY=PASSIVE there.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

#: Polls of a waiting thread before it sleeps: some 50 µs.
SPINS = "10000"


def set_waiting(environment: MutableMapping[str, str], loadavg: Path = Path("/proc/loadavg"), cores: int = os.cpu_count() or 1) -> None:
    """Choose in `environment` how threads wait, unless it says so already; it counts before torch is loaded."""
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        return
    if busy_tasks(loadavg) >= cores / 2:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        environment["GOMP_SPINCOUNT"] = SPINS


def busy_tasks(loadavg: Path) -> int:
    """Tasks that run or want to run on this host at this moment, this one left out; 0 where Linux does not tell."""
    try:
        return int(loadavg.read_text().split()[3].split("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        return 0
