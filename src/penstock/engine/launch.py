"""`--nproc N`: N ranks on this host through torch's elastic launcher.

The launcher gives each rank its environment and ends the others when one dies. This file adds what a person needs
around it: Ctrl-C reaches every rank once, a rank's own complaint is shown instead of a stack of tables, and the exit
code is the cause's. A rank killed from outside is named with its signal.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import psutil
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from penstock.config import RankFailed, UserError
from penstock.engine.failures import cause, forget_failures
from penstock.engine.resolve import cores
from penstock.store import Run, append_event


class Signalled(Protocol):
    """A process that takes signals: psutil's or subprocess's."""

    def send_signal(self, sig: int, /) -> None:
        """Send it one."""


def launch(run: Run, nproc: int, port: int) -> None:
    """Train `run` on `nproc` ranks of this host; raises `UserError` or `RankFailed` when one fails."""
    mend = f"the run is {run.path}, go on from its last snapshot with `penstock resume {run.path}`"
    try:
        start_ranks("penstock.engine.rank", run.path, nproc, port, mend)
    except RankFailed as error:
        with suppress(UserError, OSError):
            append_event(run.path, "failure", str(error).partition("; ")[0])
        raise


def start_ranks(module: str, folder: Path, nproc: int, port: int, mend: str) -> None:
    """Run `python -m module folder` on `nproc` ranks of this host and wait for them.

    A user's mistake that a rank finds is raised as `UserError`, any other failure of a rank as `RankFailed` with `mend` as advice
    (`failures.py`).
    """
    check_port(port)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // nproc)))
    forget_failures(folder)
    with tempfile.TemporaryDirectory(prefix="penstock-logs-") as logs, forwarded_signals(lambda: _children(module), say=True):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=f"localhost:{port}",
            max_restarts=0,
            local_addr="localhost",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            **_known_to_this_torch(signals_to_handle="SIGHUP", shutdown_timeout=5),
        )
        try:
            elastic_launch(config, sys.executable)("-m", module, str(folder))
        except ChildFailedError as error:
            exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise cause(folder, exit_codes, error.get_first_failure()[0], mend) from None


def _known_to_this_torch(**options: Any) -> dict[str, Any]:
    """Those options that this torch release's launcher has (releases from 2.11 on differ)."""
    return {name: value for name, value in options.items() if name in {field.name for field in fields(LaunchConfig)}}


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


def _children(module: str) -> list[psutil.Process]:
    """This process's children that run `module`."""
    return [child for child in psutil.Process().children() if module in child.cmdline()]


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
