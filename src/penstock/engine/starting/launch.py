"""`--nproc N`: N ranks on this host, which end together.

Ranks are forked from a template (`template.py`) and meet at a store of this process's, whose port nobody can take in between. This file adds what a
person needs around them: when one fails the others are ended, Ctrl-C reaches every rank once, a rank's own complaint is shown instead of a stack of
tables, and the exit code is the cause's. A rank killed from outside is named with its signal.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

from torch._C._distributed_c10d import TCPStore

from penstock.config import RankFailed, UserError
from penstock.engine.guard.failures import cause, forget_failures
from penstock.engine.starting.resolve import cores
from penstock.engine.starting.template import Child, wait_for_all, wait_for_end
from penstock.store import Run, append_event

#: Where the store is, at which ranks meet.
HOST = "localhost"
#: Seconds that other ranks have to fail by themselves after one did, and to end when they are asked to.
TOGETHER_S, LAST_S = 0.5, 5.0
#: Longest wait, seconds, for a sign of any rank; then it is waited for again.
LOOK_S = 3600.0


class Signalled(Protocol):
    """A process that takes signals: psutil's or subprocess's."""

    def send_signal(self, sig: int, /) -> None:
        """Send it one."""


def launch(run: Run, nproc: int, port: int) -> None:
    """Train `run` on `nproc` ranks of this host; raises `UserError` or `RankFailed` when one fails."""
    mend = f"the run is {run.path}, go on from its last snapshot with `penstock resume {run.path}`"
    try:
        start_ranks("penstock.engine.starting.rank", run.path, nproc, port, mend)
    except RankFailed as error:
        with suppress(UserError, OSError):
            append_event(run.path, "failure", str(error).partition("; ")[0])
        raise


def start_ranks(module: str, folder: Path, nproc: int, port: int, mend: str) -> None:
    """Run `python -m module folder` on `nproc` ranks of this host and wait for them.

    A user's mistake that a rank finds is raised as `UserError`, any other failure of a rank as `RankFailed` with `mend` as advice
    (`guard/failures.py`).
    """
    check_port(port)
    forget_failures(folder)
    store = TCPStore(HOST, port, is_master=True, wait_for_workers=False)
    shared = os.environ | {"WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc), "GROUP_RANK": "0"}
    # the last is torch's sign that the launcher holds the store
    shared |= {"MASTER_ADDR": HOST, "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared.setdefault("OMP_NUM_THREADS", str(max(1, cores() // nproc)))
    ranks: list[Child] = []
    with forwarded_signals(lambda: ranks, say=True):
        try:
            ranks += [Child(module, [str(folder)], shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(nproc)]
            first = _first_failure(ranks)
            codes = {rank: code for rank, child in enumerate(ranks) if (code := child.exit_code())}
        finally:
            _end(ranks)
    if first is not None:
        raise cause(folder, codes, first, mend)


def _first_failure(ranks: list[Child]) -> int | None:
    """Wait until all ranks have ended well, or one has not: that one's number, after a moment in which others may fail by themselves."""
    alive = set(ranks)
    while alive:
        ended = wait_for_end(alive, LOOK_S)
        alive -= set(ended)
        if failed := [child for child in ended if child.exit_code() != 0]:
            wait_for_all(alive, TOGETHER_S)
            return ranks.index(failed[0])
    return None


def _end(ranks: list[Child]) -> None:
    """End those that are left: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = [rank for rank in ranks if rank.exit_code() is None]
        for rank in left:
            rank.send_signal(number)
        wait_for_all(left, LAST_S)


def check_port(port: int) -> None:
    """Raise `UserError` if a port asked for is taken."""
    if port == 0:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("localhost", port))
        except OSError as error:
            raise UserError(f"layout.port = {port} cannot be used: {error.strerror}; choose another, or 0 for any free one") from None


@contextmanager
def forwarded_signals(ranks: Callable[[], Iterable[Signalled]], say: bool) -> Iterator[list[int]]:
    """Send each of the `ranks` one SIGTERM on SIGINT or SIGTERM here, and keep waiting for them; a second one kills them.

    Yields the list of signals that came so far. With `say`, the first is acknowledged on stderr.
    """
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for rank in ranks():
            rank.send_signal(signal.SIGTERM if len(came) == 1 else signal.SIGKILL)
        if say and len(came) == 1:
            print("\nstopping after this step, then saving; press Ctrl-C again to stop at once without saving", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
