"""Seconds by phase of a step, without stopping the device.

On the CPU a phase is timed by the clock. On CUDA, where kernels run behind the host, each phase is bracketed by two
events on the stream, read only in `take`, after the step has synchronised anyway.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class PhaseTimer:
    """Accumulates seconds by phase name; phases must not nest."""

    def __init__(self, device: torch.device) -> None:
        #: Is told the name of every phase that begins.
        self.listener: Callable[[str], None] | None = None
        #: Is told the name, start and end (`time.perf_counter`, the host's) of every phase.
        self.spans: Callable[[str, float, float], None] | None = None
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block under `name`."""
        if self.listener is not None:
            self.listener(name)
        start = time.perf_counter()
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            yield
            self._seconds[name] += time.perf_counter() - start
        if self.spans is not None:
            self.spans(name, start, time.perf_counter())

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last take."""
        if self._cuda:
            torch.cuda.synchronize()
            for name, begin, end in self._events:
                self._seconds[name] += begin.elapsed_time(end) / 1e3
            self._events.clear()
        row = dict(self._seconds)
        self._seconds.clear()
        return row
