"""Several gloo ranks as an ordinary function call: `run_ranks(func, 2, ...)` returns each rank's result.

Ranks are forked from a server process that has imported torch once, so a test of two ranks costs tenths of a second. They meet at a store of this
process's, whose port nobody can take in between. A rank that raises fails the test with its traceback, one that dies with its exit code; ranks that
do not end within the deadline are killed and fail it too.
"""

from __future__ import annotations

import faulthandler
import multiprocessing as mp
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from torch.distributed import TCPStore

#: Makes processes in which all is imported that ranks, commands and the modules of tests import.
warm = mp.get_context("forkserver")
warm.set_forkserver_preload(
    "torch torch.distributed torch.distributed.tensor torch.distributed.fsdp torch._inductor.compile_fx numpy numpy.ma pydantic penstock.cli penstock.lab "
    "penstock.engine.survive.member tensorboard.compat.proto.event_pb2 tensorboard.summary.writer.event_file_writer pytest hypothesis hypothesis.strategies".split()
)


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run_ranks(func: Callable[..., Any], size: int, *args: Any, timeout_s: float = 300.0) -> list[Any]:
    """Run `func(world, *args)` on `size` gloo ranks and return what each returned, in rank order."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    given = (func, size, store.port, args, timeout_s)
    coming, ranks = {}, []
    for rank in range(size):
        answers, answer = warm.Pipe(duplex=False)
        coming[answers] = rank
        ranks.append(warm.Process(target=_rank, args=(rank, *given, answer), daemon=True))
        ranks[-1].start()
        answer.close()
    results: dict[int, Any] = {}
    try:
        deadline = time.monotonic() + timeout_s
        while coming:
            ready = wait(coming, deadline - time.monotonic())
            assert ready, f"ranks {sorted(coming.values())} did not end within {timeout_s} s"
            for answers in ready:
                rank = coming.pop(answers)
                results[rank] = _received(rank, answers, ranks[rank])
    finally:
        for process in ranks:
            if len(results) < size:
                process.kill()
            process.join()
    return [results[rank] for rank in range(size)]


def _received(rank: int, answers: Connection, process: Any) -> Any:
    """The rank's result; fails if it raised or died."""
    try:
        ok, answer = answers.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"rank {rank} died with exit code {process.exitcode}") from None
    assert ok, f"rank {rank} failed:\n{answer}"
    return pickle.loads(answer)


def _rank(rank: int, func: Callable[..., Any], size: int, port: int, args: tuple[Any, ...], timeout_s: float, answer: Connection) -> None:
    faulthandler.dump_traceback_later(0.9 * timeout_s)  # where a rank hangs is said before it is killed
    import torch

    from penstock.comm import join_world, leave_world

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    try:
        world = join_world("cpu", 60.0)
        result = func(world, *args)
        leave_world(world)
        answer.send((True, pickle.dumps(result)))
    except BaseException:
        answer.send((False, traceback.format_exc()))
