"""What the ranks say to each other about a snapshot: JSON over a process group of the store's own, apart from training's collectives.

The group is gloo's on every machine, as what travels is in host memory, and its waits have the run's deadline. All ranks make it together, once for
a world.
"""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from penstock.comm import Axis, World


class Ranks:
    """All ranks of `world` as the store's background threads see them; making it is a collective of the main threads."""

    def __init__(self, world: World, timeout_s: float) -> None:
        key = ("store", *range(world.size))
        if world.size > 1 and key not in world.groups:
            world.groups[key] = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.rank, self.size = world.rank, world.size
        #: Set when nothing is to be written any more.
        self.given_up = threading.Event()
        self.axis = Axis("store", tuple(range(world.size)), world.rank, world.groups.get(key), world.meter, world.nodes)

    @property
    def is_lead(self) -> bool:
        """Whether this rank publishes."""
        return self.rank == 0

    def tell(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in the order of the ranks; all must call it. Raises RuntimeError past the deadline."""
        if self.size == 1:
            return [value]
        message = torch.from_numpy(np.frombuffer(json.dumps(value, separators=(",", ":")).encode(), dtype=np.uint8).copy())
        return [json.loads(row.numpy().tobytes()) for row in self.axis.gather_messages(message, "reports")]

    def told_by_lead(self, value: Any) -> Any:
        """The lead's value, on every rank; all must call it."""
        return self.tell(value if self.is_lead else None)[0]
