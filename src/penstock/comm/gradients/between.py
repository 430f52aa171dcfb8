"""The exchange between nodes: how the sum over the `between` axis of what each rank holds of a bucket is made.

`Between` is what every kind offers; `Dense` sends all of it, `topk.py` the largest entries, `powersgd.py` factors of
low rank.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from penstock.comm.gradients.bucket import Bucket


class Between(Protocol):
    """A kind of exchange. Every rank of the axis calls it for the same buckets in the same order."""

    #: What was wrong with messages of this step that were received here, in words; and whether numbers to be sent here were not finite.
    faults: list[str]
    overflow: bool
    #: Whether it keeps state of parameters.
    withholds: bool

    def __str__(self) -> str:
        """What is sent, in a few words."""

    def compresses(self, shape: tuple[int, ...]) -> bool:
        """Whether parameters of that full shape do not travel whole."""

    def prepare(self, buckets: list[Bucket]) -> dict[nn.Parameter, Tensor]:
        """Make this kind's state for the buckets; returns what it withholds of parameters, zero yet, with a leading dim of one for the node."""

    def begin(self, step: int) -> None:
        """Step number `step` comes."""

    def sum_(self, bucket: Bucket) -> None:
        """Replace `bucket.own` by its sum over the nodes, or what this kind makes of it, the same bits on every node."""

    def commit(self) -> None:
        """No rank found a fault, so the step counts. Without it, nothing has happened to the state."""


class Dense:
    """Every number of every node, by an all-reduce."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.overflow = self.withholds = False

    def __str__(self) -> str:
        return "dense"

    def compresses(self, shape: tuple[int, ...]) -> bool:
        """Nothing is."""
        return False

    def prepare(self, buckets: list[Bucket]) -> dict[nn.Parameter, Tensor]:
        """Nothing is withheld."""
        return {}

    def begin(self, step: int) -> None:
        """Every step is alike."""

    def sum_(self, bucket: Bucket) -> None:
        """Sum exactly."""
        bucket.route.between.all_reduce(bucket.own, "gradients")

    def commit(self) -> None:
        """There is no state."""
