"""Running tasks in this process, or in several processes of their own.

Each process is a fresh interpreter (`worker.py`) that this one talks to over pipes, one task at a time; results are
kept by task, so neither the number of processes nor their timing shows in them. Compared with `multiprocessing` nothing
is pickled, the main module is not imported again in every process (it may import torch), and no process outlives its parent.

Cost: about 0.4 s and 80 MiB a process; not worth it below some MB of text.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import penstock
from penstock.config import UserError
from penstock.data.tasks import Task, TrainTask, run_task

#: Longest silence of a process that has a task, in seconds; they report every 256 KiB of text, training at its end.
SILENCE_S = 1800.0
TERMINATE_S = 5.0


def run_tasks(tasks: Sequence[Task | TrainTask], workers: int, report: Callable[[int], None]) -> list[dict[str, Any]]:
    """Run all tasks, in this process if `workers` is 1; return their results in the order of `tasks`.

    Raises what a task raises (`UserError`, `OSError`), and `UserError` for a process that was killed or hangs.
    """
    if workers == 1:
        return [run_task(task, report) for task in tasks]
    pool = _Pool(tasks, report)
    try:
        return pool.run(min(workers, len(tasks)))
    finally:
        pool.close()


class _Worker:
    """A process, the number of its task (None: idle), and the start of a line it has not finished."""

    def __init__(self) -> None:
        package = str(Path(penstock.__file__).parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "penstock.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self.task: int | None = None
        self.unfinished = b""

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def give(self, number: int, task: Task | TrainTask) -> None:
        """Send a task; a process that died meanwhile is noticed when its output is read."""
        assert self.process.stdin is not None
        self.task = number
        try:
            self.process.stdin.write(task.line().encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def messages(self) -> list[dict[str, Any]]:
        """The complete messages that are there to read; raises `UserError` if the process has ended."""
        data = os.read(self.stdout.fileno(), 1 << 16)
        if not data:
            code = self.process.wait(TERMINATE_S)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise UserError(f"a process that prepares data {how}; if memory ran out, set data.workers to a smaller number, and run again")
        *lines, self.unfinished = (self.unfinished + data).split(b"\n")
        return [json.loads(line) for line in lines]


class _Pool:
    """Hands tasks to idle workers until all are done."""

    def __init__(self, tasks: Sequence[Task | TrainTask], report: Callable[[int], None]) -> None:
        self._tasks, self._report = tasks, report
        self._next = 0
        self._results: dict[int, dict[str, Any]] = {}
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def run(self, workers: int) -> list[dict[str, Any]]:
        """Start the processes and serve them; results in the order of the tasks."""
        for _ in range(workers):
            worker = _Worker()
            self._workers.append(worker)
            self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
            self._hand_out(worker)
        while len(self._results) < len(self._tasks):
            ready = self._selector.select(SILENCE_S)
            if not ready:
                raise UserError(f"the processes that prepare data were silent for {SILENCE_S:.0f} s; check the corpus's disk, and rerun")
            for key, _ in ready:
                self._listen(key.data)
        return [self._results[number] for number in range(len(self._tasks))]

    def close(self) -> None:
        """End all processes."""
        self._selector.close()
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            try:
                worker.process.wait(TERMINATE_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.stdout.close()
            if worker.process.stdin is not None:
                with suppress(BrokenPipeError):  # tasks that a killed process has not read
                    worker.process.stdin.close()

    def _hand_out(self, worker: _Worker) -> None:
        if self._next < len(self._tasks):
            worker.give(self._next, self._tasks[self._next])
            self._next += 1

    def _listen(self, worker: _Worker) -> None:
        for message in worker.messages():
            if "done" in message:
                self._report(message["done"])
            elif "result" in message:
                assert worker.task is not None
                self._results[worker.task] = message["result"]
                self._hand_out(worker)
            elif "user_error" in message:
                raise UserError(message["user_error"])
            elif "os_error" in message:
                number, text, filename = message["os_error"]
                raise OSError(number, text, filename)
            else:
                raise RuntimeError(f"a process that prepares data failed:\n{message['fault']}")
