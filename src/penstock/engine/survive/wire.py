"""What the supervisor and the ranks say to each other: JSON under a few keys of a TCPStore that the supervisor keeps.

    generation/<g>             the supervisor: who forms generation g, and why there is one
    gen<g>/status/<rank>       each member: that it is here, and which state it has
    gen<g>/…                   the rendezvous of the generation's process groups

Nothing is ever changed once it is said, so a generation may be read by whoever comes late.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore

#: Where the store is.
HOST = "localhost"
#: Seconds between two looks at the store where several things are waited for.
LOOK_S = 0.002
#: A wait for a generation has no end of its own: it ends with the supervisor, with which this process ends.
FOR_EVER = timedelta(days=365)


@dataclass(frozen=True)
class Generation:
    """Who takes part, by rank the number of the process; and what ended the generation before: cause, how it is answered, when (monotonic)."""

    number: int
    members: tuple[int, ...]
    cause: str = ""
    how: str = ""
    since: float = 0.0


@dataclass(frozen=True)
class Status:
    """What a member brings: the step whose state it has (-1: none), with the plain numbers of it, and the measured peak of its device."""

    step: int = -1
    numbers: dict[str, Any] = field(default_factory=dict)
    peak: float = 0.0


class Line:
    """A connection to the supervisor's store; each thread needs its own."""

    def __init__(self, port: int) -> None:
        self.store = TCPStore(HOST, port, is_master=False, timeout=timedelta(seconds=60))

    def generation(self, number: int) -> Generation:
        """Wait for a generation."""
        key = _key(number)
        self.store.wait([key], FOR_EVER)
        said = json.loads(self.store.get(key))
        return Generation(**said | {"members": tuple(said["members"])})

    def check_in(self, generation: Generation, rank: int, status: Status, over: Callable[[], None], timeout_s: float) -> list[Status]:
        """Say that this rank is here, and wait for all others; `over` raises if the generation has ended before it began."""
        name = f"gen{generation.number}/status/"
        self.store.set(f"{name}{rank}", json.dumps(asdict(status)))
        keys, end = [f"{name}{rank}" for rank in range(len(generation.members))], time.monotonic() + timeout_s
        while not self.store.check(keys):
            over()
            if time.monotonic() > end:
                raise TimeoutError(f"not all ranks of generation {generation.number} came within {timeout_s:.0f} s")
            time.sleep(LOOK_S)
        return [Status(**json.loads(text)) for text in self.store.multi_get(keys)]


def post(store: Store, generation: Generation) -> None:
    """Say who forms a generation."""
    store.set(_key(generation.number), json.dumps(asdict(generation)))


def is_posted(store: Store, number: int) -> bool:
    """Whether there is such a generation."""
    return store.check([_key(number)])


def _key(number: int) -> str:
    return f"generation/{number}"
