"""Several gloo ranks as an ordinary function call: `run_ranks(func, 2, ...)` returns each rank's result.

Ranks are forked from a server process that has imported torch once, so a test of two ranks costs tenths of a second. A
rank that raises fails the test with its traceback; ranks that do not end within the deadline are killed and fail it too.
"""

from __future__ import annotations

import faulthandler
import multiprocessing as mp
import os
import pickle
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any

_context = mp.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "torch.distributed.tensor", "torch._inductor.compile_fx", "numpy", "pydantic", "penstock.lab"])


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run_ranks(func: Callable[..., Any], size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Run `func(world, *args)` on `size` gloo ranks and return what each returned, in rank order."""
    results = _context.Queue()
    port = free_port()
    given = (func, size, port, args, timeout_s, results)
    ranks = [_context.Process(target=_rank, args=(rank, *given), daemon=True) for rank in range(size)]
    for process in ranks:
        process.start()
    answers: dict[int, Any] = {}
    try:
        for _ in ranks:
            rank, ok, answer = results.get(timeout=timeout_s)
            assert ok, f"rank {rank} failed:\n{answer}"
            answers[rank] = pickle.loads(answer)
    except queue.Empty:
        raise AssertionError(f"ranks {sorted(set(range(size)) - answers.keys())} did not end within {timeout_s} s") from None
    finally:
        for process in ranks:
            if len(answers) < size:
                process.kill()
            process.join()
    return [answers[rank] for rank in range(size)]


def _rank(rank: int, func: Callable[..., Any], size: int, port: int, args: tuple[Any, ...], timeout_s: float, results: Any) -> None:
    faulthandler.dump_traceback_later(0.9 * timeout_s)  # where a rank hangs is said before it is killed
    import torch

    from penstock.comm import join_world, leave_world

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        world = join_world("cpu", 60.0)
        answer = func(world, *args)
        leave_world(world)
        results.put((rank, True, pickle.dumps(answer)))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
