"""The exchange between nodes: how the sum over the `between` axis of what each rank holds of a bucket is made.

`Between` is what every kind offers; `Dense` sends all of it.
"""

from __future__ import annotations

from typing import Protocol

from penstock.comm.gradients.bucket import Bucket


class Between(Protocol):
    """A kind of exchange. Every rank of the axis calls it for the same buckets in the same order."""

    def sum_(self, bucket: Bucket) -> None:
        """Replace `bucket.own` by its sum over the nodes, or what this kind makes of it, the same bits on every node."""


class Dense:
    """Every number of every node, by an all-reduce."""

    def sum_(self, bucket: Bucket) -> None:
        """Sum exactly."""
        bucket.route.between.all_reduce(bucket.own, "gradients")
