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

from penstock.engine.starting.launch import HOST

#: Seconds between two looks at the store where several things are waited for.
LOOK_S = 0.002
#: A wait for a generation has no end of its own: it ends with the supervisor, with which this process ends.
FOR_EVER = timedelta(days=365)


@dataclass(frozen=True)
class Generation:
    """Who takes part, by rank the number of the process; who has done its part and ends; and what ended the generation before, if that was a failure:
    cause, how it is answered, when (monotonic).
    """

    number: int
    members: tuple[int, ...]
    leavers: tuple[int, ...] = ()
    cause: str = ""
    how: str = ""
    since: float = 0.0


@dataclass(frozen=True)
class Offer:
    """A state of which a process has a part: of a step, as it lay in generation `era`: all of `rank`, and the tensors that it keeps of others.

    Within a generation layers and experts may move after a step; `where` is a digest of how the state lies, and parts are of one state if all agree.
    """

    step: int
    era: int
    where: str
    rank: int
    kept: dict[int, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """What a member brings: states, the recoveries that it knows of, and the measured peak of its device."""

    offers: list[Offer] = field(default_factory=list)
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    peak: float = 0.0

    @classmethod
    def from_json(cls, text: str | bytes) -> Status:
        """What was said."""
        said = json.loads(text)
        offers = [Offer(**one | {"kept": {int(rank): names for rank, names in one["kept"].items()}}) for one in said["offers"]]
        return cls(**said | {"offers": offers})


class Line:
    """A connection to the supervisor's store; each thread needs its own."""

    def __init__(self, port: int) -> None:
        self.store = TCPStore(HOST, port, is_master=False, timeout=timedelta(seconds=60))

    def generation(self, number: int) -> Generation:
        """Wait for a generation."""
        key = _key(number)
        self.store.wait([key], FOR_EVER)
        said = json.loads(self.store.get(key))
        return Generation(**said | {"members": tuple(said["members"]), "leavers": tuple(said["leavers"])})

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
        return [Status.from_json(text) for text in self.store.multi_get(keys)]


def post(store: Store, generation: Generation) -> None:
    """Say who forms a generation."""
    store.set(_key(generation.number), json.dumps(asdict(generation)))


def is_posted(store: Store, number: int) -> bool:
    """Whether there is such a generation."""
    return store.check([_key(number)])


def _key(number: int) -> str:
    return f"generation/{number}"
