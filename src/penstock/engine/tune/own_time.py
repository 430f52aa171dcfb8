"""A rank's own seconds in the forward and backward passes of a step: what it computed, without what it waited for others.

Waiting must come off, because in a collective all ranks wait for the slowest, and their times look alike. The meter logs each wait
(`comm/meter.py`), and it depends on the layout where waits lie:

    replicas        gradients are summed on the side while the last backward pass goes on, and waited for after it: nothing to take off
    shard           FSDP2's gathers and reduce-scatters wait inside both passes
    expert          tokens travel inside both passes
    tensor, context ranks that share sequences wait for each other inside both passes
    pipeline        the time is that of the stages' actions, which begin when their input has come, so bubbles are not in it; waits are taken
                    off where they lie inside an action

The time of the processor (`process_time`) would not do: a rank that is stalled, throttled or preempted does not use it, and is slow all the same.
On CUDA all times are between events on the stream. FSDP2's exchange runs on streams of its own there, beside the computation, so how long the
computation was held up by it cannot be seen from outside; `balance.py` refuses that pair.

Cost: two readings of a clock a step, and one more list entry a collective.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from penstock.comm import ByteMeter, Wait

#: Axes between the ranks of one replica, which read the same sequences.
INNER = {"pipeline", "context", "depth", "row", "column"}


class Own(NamedTuple):
    """Seconds of a rank: computing, and in exchanges with ranks that read the same sequences (waits included)."""

    busy: float
    inner: float


class OwnTime:
    """Times a block of a step on one rank, to be read after the step."""

    def __init__(self, meter: ByteMeter, device: torch.device) -> None:
        self._meter, self._cuda = meter, device.type == "cuda"
        self._waits: list[Wait] = []
        self._ends: tuple[Any, Any] = (0.0, 0.0)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Time the block; a block timed before is forgotten."""
        with self._meter.log() as self._waits:
            start = self._now()
            yield
            self._ends = start, self._now()

    def read(self, actions: Sequence[tuple[Any, Any]] = ()) -> Own:
        """The block's times; of a pipeline only those of its `actions` (start, end), by the clock that `measure` uses, one after another."""
        spans = [(self._at(start), self._at(end)) for start, end in actions or [self._ends]]
        starts = [start for start, _ in spans]
        waited = {True: 0.0, False: 0.0}
        for name, start, end in self._waits:
            begin, seconds = self._at(start), self._at(end) - self._at(start)
            place = bisect_right(starts, begin) - 1
            if place >= 0 and begin < spans[place][1]:
                waited[within_replica(name)] += seconds
        return Own(sum(end - start for start, end in spans) - waited[True] - waited[False], waited[True])

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _at(self, moment: Any) -> float:
        """Seconds since the block began."""
        return self._ends[0].elapsed_time(moment) / 1e3 if self._cuda else moment - self._ends[0]


def within_replica(name: str) -> bool:
    """Whether a wait of that `axis.purpose` was for ranks that read the same sequences."""
    return set(name.split(".")[0].split("_")) <= INNER
