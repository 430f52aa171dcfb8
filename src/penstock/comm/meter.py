"""The byte meter: what every collective sent, by axis of the mesh and by purpose, and the seconds it kept this rank waiting.

Bytes are those one rank sends under the bandwidth-optimal ring algorithms (Patarasuk and Yuan, 2009; Chan et al., 2007), for n bytes of the
whole tensor over p ranks:

    all-reduce 2 n (p - 1) / p;   all-gather, reduce-scatter, broadcast, reduce n (p - 1) / p (the last two: on average over the ranks);
    all-to-all: what leaves for other ranks

so that figures of different collectives add up, and a formula can be held against them to the byte. Libraries may choose
other algorithms; then the count is the lower bound they approach. Of those bytes, the ones that leave the node are counted beside: in a ring all of
those that a rank sends to a neighbour on another node. Seconds are the host's on a CPU and the stream's on CUDA.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


def ring_bytes(operation: str, n_bytes: int, ranks: int) -> int:
    """Bytes one rank sends for a collective on a whole tensor of `n_bytes`: all_reduce, all_gather, reduce_scatter, broadcast, reduce."""
    passes = 2 if operation == "all_reduce" else 1
    return passes * n_bytes * (ranks - 1) // ranks


class Wait(NamedTuple):
    """One collective's wait under `axis.purpose`: its ends are seconds by `time.perf_counter` on a CPU, events of the stream on CUDA."""

    name: str
    start: Any
    end: Any


class ByteMeter:
    """Bytes, calls and seconds by `axis.purpose`; `take` reads and resets. Other threads count here too (couriers, the saver)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes: dict[str, int] = defaultdict(int)
        self._between: dict[str, int] = defaultdict(int)
        self._calls: dict[str, int] = defaultdict(int)
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event, bool]] = []
        self._log: list[Wait] | None = None
        self._aside: set[int] = set()
        self._hidden: dict[str, float] = defaultdict(float)
        #: Of the seconds that `take` gave last, those of threads that run aside: they held up no step.
        self.hidden: dict[str, float] = {}
        self._outside: dict[str, float] = {}
        #: Of the seconds that `take` gave last, those of waits between two steps (evaluations, snapshots, changes), by name.
        self.outside: dict[str, float] = {}
        #: Is told the name, start and end (`time.perf_counter`, the host's) of every wait.
        self.listener: Callable[[str, float, float], None] | None = None
        #: Calls by operation since the meter was made, to be held against torch's own count.
        self.operations: dict[str, int] = defaultdict(int)

    def count(self, name: str, n_bytes: int, operation: str, between: int = 0) -> None:
        """Add one call that sends `n_bytes` under `name`, `between` of them to other nodes."""
        with self._lock:
            self._bytes[name] += n_bytes
            self._calls[name] += 1
            self.operations[operation] += 1
            if between:
                self._between[name] += between

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add seconds that were timed elsewhere."""
        with self._lock:
            self._seconds[name] += seconds

    @contextmanager
    def log(self) -> Iterator[list[Wait]]:
        """The single waits inside the block, in a list that fills as they come; blocks must not nest."""
        waits: list[Wait] = []
        self._log = waits
        try:
            yield waits
        finally:
            self._log = None

    @contextmanager
    def waiting(self, name: str, on_cuda: bool) -> Iterator[None]:
        """Time the block under `name` without stopping the device."""
        start = time.perf_counter()
        aside = threading.get_ident() in self._aside
        if on_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            with self._lock:
                self._events.append((name, begin, end, aside))
            self._note(Wait(name, begin, end))
        else:
            yield
            done = time.perf_counter()
            with self._lock:
                self._add(name, done - start, aside)
            self._note(Wait(name, start, done))
        if self.listener is not None:
            self.listener(name, start, time.perf_counter())

    def begin_step(self) -> None:
        """A step begins: this rank's waits since the last `take` held up no step."""
        with self._lock:
            self._outside = {name: seconds - self._hidden.get(name, 0.0) for name, seconds in self._seconds.items()}

    def run_aside(self) -> None:
        """This thread works beside the others: what it waits for holds up none of them, and is not logged."""
        self._aside.add(threading.get_ident())

    def _note(self, wait: Wait) -> None:
        if self._log is not None and threading.get_ident() not in self._aside:
            self._log.append(wait)

    def _add(self, name: str, seconds: float, aside: bool) -> None:
        self._seconds[name] += seconds
        if aside:
            self._hidden[name] += seconds

    def take(self) -> dict[str, float]:
        """Since the last take: `{name}_bytes`, `{name}_calls` and `{name}_s`; `{name}_between_bytes` where there are any."""
        if self._events:
            torch.cuda.synchronize()
            for name, begin, end, aside in self._events:
                self._add(name, begin.elapsed_time(end) / 1e3, aside)
            self._events.clear()
        with self._lock:
            row: dict[str, float] = {f"{name}_bytes": n for name, n in self._bytes.items()}
            row |= {f"{name}_calls": n for name, n in self._calls.items()} | {f"{name}_s": s for name, s in self._seconds.items()}
            row |= {f"{name}_between_bytes": n for name, n in self._between.items()}
            self.hidden, self.outside, self._outside = dict(self._hidden), self._outside, {}
            for table in (self._bytes, self._between, self._calls, self._seconds, self._hidden):
                table.clear()
        return row
