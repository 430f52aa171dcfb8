"""Ranks on the nodes of an emulated cluster: starting them below a launcher's environment, waiting for them, ending them.

Ranks find each other over the emulated network (MASTER_ADDR is node 0's address there, gloo takes the interface `lab0`) and know their node by
GROUP_RANK and by its hostname. They see no GPU: nodes share the machine's, and NCCL would not go through the emulated links.

Rank 0 speaks live; what the others say is kept, and shown when one of them is what went wrong. When a rank dies the others are given a moment
to say what they saw, then killed; the cause is told as it is for `--nproc` (`engine/guard/failures.py`), for ranks that report to the folder. None
outlives this process: the kernel kills them when it ends, however.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from penstock.config import RankFailed
from penstock.engine import cause, cores, forget_failures, forwarded_signals
from penstock.lab.namespaces import INTERFACE, Nodes

#: Seconds the other ranks get to end by themselves once one has failed, and between looks at them.
GRACE_S, LOOK_S = 3.0, 0.05
#: Lines shown of what the failing rank has said.
TAIL = 40
#: What a launcher around this process may have set.
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
#: Exit codes that are no failure: done, and interrupted after a clean snapshot.
WELL = (0, 130)


@dataclass(frozen=True)
class NodeRank:
    """A started process: its rank, its node, and where its words are kept (None: shown live)."""

    rank: int
    node: int
    process: subprocess.Popen[bytes]
    log: Path | None


class NodeRanks:
    """Started ranks; made by `ranks_on_nodes`."""

    def __init__(self, ranks: list[NodeRank], folder: Path, alone: bool) -> None:
        self._ranks, self._folder, self._alone = ranks, folder, alone

    def wait(self, mend: str, deadline_s: float | None = None) -> int:
        """Wait until all have ended and return rank 0's exit code: 0, or 130 when they stopped cleanly because this process was asked to;
        that of one process alone is returned whatever it is, since it tells its failure itself.

        SIGINT and SIGTERM are passed on once, the next one kills. Raises `UserError` or `RankFailed` with `mend` as advice when a rank fails, or when
        `deadline_s` seconds have passed, and `KeyboardInterrupt` when they were stopped before they had anything to save.
        """
        end = time.monotonic() + deadline_s if deadline_s else None
        with forwarded_signals(lambda: [r.process for r in self._ranks], say=False) as came:
            while not (failed := [rank for rank, code in self._codes().items() if code not in WELL]):
                codes = self._codes()
                if len(codes) == len(self._ranks):
                    break
                if end and time.monotonic() > end:
                    self.end()
                    raise RankFailed(f"ranks {sorted({r.rank for r in self._ranks} - codes.keys())} did not end within {deadline_s:.0f} s; {mend}")
                time.sleep(LOOK_S)
            codes = self._codes()
            if not failed or (self._alone and codes[0] > 0):
                return codes[0]
            self._give_grace()
            codes = self._codes()
            self.end()
        raise self._failure(codes, failed[0], len(came), mend)

    def end(self) -> None:
        """Kill those that still run, and wait for them."""
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.wait(timeout=GRACE_S * 4)

    def _codes(self) -> dict[int, int]:
        """Exit codes of the ranks that have ended."""
        return {r.rank: code for r in self._ranks if (code := r.process.poll()) is not None}

    def _give_grace(self) -> None:
        end = time.monotonic() + GRACE_S
        while len(self._codes()) < len(self._ranks) and time.monotonic() < end:
            time.sleep(LOOK_S)

    def _failure(self, codes: dict[int, int], first: int, signals: int, mend: str) -> BaseException:
        if signals > 1:
            return RankFailed(f"stopped at once, without saving; {mend}")
        if signals == 1 and codes[first] == -signal.SIGTERM:
            return KeyboardInterrupt()
        error = cause(self._folder, codes, first, mend)
        if isinstance(error, RankFailed) and error.rank is not None:
            self._show(error.rank)
        return error

    def _show(self, rank: int) -> None:
        """Print the last words of a rank that was not heard live, with its name before each line."""
        found = next(r for r in self._ranks if r.rank == rank)
        if found.log is not None:
            for line in found.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]:
                print(f"[node {found.node}, rank {rank}] {line}", file=sys.stderr)


@contextmanager
def ranks_on_nodes(
    nodes: Nodes, argv: Sequence[str], ranks_per_node: int, folder: Path, stdout: IO[bytes] | None = None, alone: bool = False
) -> Iterator[NodeRanks]:
    """Run `python argv…` as `ranks_per_node` ranks on each node; they are killed on leaving if they still run.

    Failures that ranks report to `folder` (`run_reporting`) are told. Rank 0 writes to `stdout`, else to this process's. With `alone` one process
    runs on node 0, below no launcher. Call it, and what waits, in a thread that outlives the ranks: they are killed when it ends.
    """
    forget_failures(folder)
    port = next(nodes.ports)
    started: list[NodeRank] = []
    ranks = NodeRanks(started, folder, alone)
    try:
        for rank in range(1 if alone else nodes.count * ranks_per_node):
            node, log = rank // ranks_per_node, nodes.folder / f"rank-{rank}-{port}.log" if rank else None
            environment = bare_environment() if alone else rank_environment(nodes, rank, ranks_per_node, port)
            command = nodes.inside(node, [sys.executable, *argv])
            with open(log or os.devnull, "wb") as kept:
                out, err = (stdout, None) if log is None else (kept, subprocess.STDOUT)
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )  # a session of its own: Ctrl-C on the terminal reaches the ranks once, through `wait`
            started.append(NodeRank(rank, node, process, log))
        yield ranks
    finally:
        ranks.end()


def bare_environment() -> dict[str, str]:
    """This process's environment without what a launcher around it has set, and without GPUs."""
    return {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER)} | {"CUDA_VISIBLE_DEVICES": ""}


def rank_environment(nodes: Nodes, rank: int, ranks_per_node: int, port: int) -> dict[str, str]:
    """What a launcher on the rank's node would set; threads share the machine's cores over all ranks, unless OMP_NUM_THREADS says otherwise."""
    node, local = divmod(rank, ranks_per_node)
    size = nodes.count * ranks_per_node
    values = {
        "RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": ranks_per_node,
        "GROUP_RANK": node, "GROUP_WORLD_SIZE": nodes.count, "MASTER_ADDR": nodes.address(0), "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": INTERFACE,
    }  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // size))}
    return threads | bare_environment() | {key: str(value) for key, value in values.items()}
