"""One axis of the mesh as a rank sees it: the ranks along it, and the collectives between them, each counted.

Every collective of Penstock is called here (or, for FSDP2, with `count`), so that its bytes are in the meter under `axis.purpose` and its wait
has the process group's deadline. An axis of one rank has no group,
sends nothing, and every operation on it is the identity.

`dim` counts a tensor's dimensions, as everywhere; tensors are split and joined along it in the order of the axis' ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from penstock.comm.meter import ByteMeter, ring_bytes

# Newer releases give these two other names and warn about the old ones.
all_gather_into: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
reduce_scatter_into: Any = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


@dataclass(frozen=True)
class Axis:
    """The global ranks along one axis, this rank's place among them, their process group (None for one rank), and the meter."""

    name: str
    ranks: tuple[int, ...] = (0,)
    index: int = 0
    group: dist.ProcessGroup | None = None
    meter: ByteMeter = field(default_factory=ByteMeter)
    #: The node of each rank along the axis; empty: all are on one.
    nodes: tuple[int, ...] = ()

    @property
    def crosses(self) -> bool:
        """Whether the next rank along the axis, to which a ring sends, is on another node."""
        return bool(self.nodes) and self.nodes[(self.index + 1) % self.size] != self.nodes[self.index]

    @property
    def size(self) -> int:
        """Number of ranks along the axis."""
        return len(self.ranks)

    def all_reduce(self, tensor: Tensor, purpose: str, maximum: bool = False) -> Tensor:
        """Sum (or take the maximum of) a contiguous `tensor` over the axis in place, and return it."""
        if self.size > 1:
            with self.counted(purpose, "all_reduce", tensor):
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=self.group)
        return tensor

    def start_all_reduce(self, tensor: Tensor, purpose: str) -> dist.Work:
        """Begin summing `tensor` in place; the sum is there when the returned work has been waited for. Needs two ranks or more."""
        self.count(purpose, "all_reduce", _bytes(tensor))
        work = dist.all_reduce(tensor, group=self.group, async_op=True)
        assert work is not None
        return work

    def all_gather(self, tensor: Tensor, dim: int, purpose: str) -> Tensor:
        """Join every rank's `tensor` (all of one shape) along `dim`; contiguous."""
        if self.size == 1:
            return tensor
        part = tensor.movedim(dim, 0).contiguous()
        whole = part.new_empty((self.size * part.shape[0], *part.shape[1:]))
        with self.counted(purpose, "all_gather", whole):
            all_gather_into(whole, part, group=self.group)
        return whole.movedim(0, dim).contiguous()  # or every product that reads it would copy and keep it

    def reduce_scatter(self, tensor: Tensor, dim: int, purpose: str) -> Tensor:
        """Sum `tensor` over the axis and keep this rank's part along `dim`, which must divide evenly; contiguous."""
        if self.size == 1:
            return tensor
        whole = tensor.movedim(dim, 0).contiguous()
        part = whole.new_empty((whole.shape[0] // self.size, *whole.shape[1:]))
        with self.counted(purpose, "reduce_scatter", whole):
            reduce_scatter_into(part, whole, group=self.group)
        return part.movedim(0, dim).contiguous()  # fused attention kernels want it so

    def broadcast(self, tensor: Tensor, source: int, purpose: str) -> Tensor:
        """Give every rank the contiguous `tensor` of the rank at place `source`, in place, and return it."""
        if self.size > 1:
            with self.counted(purpose, "broadcast", tensor):
                dist.broadcast(tensor, self.ranks[source], group=self.group)
        return tensor

    def reduce(self, tensor: Tensor, target: int, purpose: str) -> Tensor:
        """Sum the contiguous `tensor` onto the rank at place `target`; on the others it is left undefined."""
        if self.size > 1:
            with self.counted(purpose, "reduce", tensor):
                dist.reduce(tensor, self.ranks[target], group=self.group)
        return tensor

    def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int], purpose: str) -> Tensor:
        """Send `send[r]` consecutive rows to each rank r in turn; return the `receive[r]` rows from each, in rank order."""
        if self.size == 1:
            return rows
        rows = rows.contiguous()
        got = rows.new_empty((sum(receive), *rows.shape[1:]))
        away = [n if place != self.index else 0 for place, n in enumerate(send)]
        far = sum(n for place, n in enumerate(away) if self.nodes and self.nodes[place] != self.nodes[self.index])
        self.meter.count(f"{self.name}.{purpose}", _row_bytes(rows) * sum(away), "all_to_all", _row_bytes(rows) * far)
        with self.meter.waiting(f"{self.name}.{purpose}", rows.is_cuda):
            dist.all_to_all_single(got, rows, list(receive), list(send), group=self.group)
        return got

    def count(self, purpose: str, operation: str, n_bytes: int) -> None:
        """Count one call on a whole tensor of `n_bytes` that somebody else makes."""
        sent = ring_bytes(operation, n_bytes, self.size)
        self.meter.count(f"{self.name}.{purpose}", sent, operation, sent if self.crosses else 0)

    def counted(self, purpose: str, operation: str, whole: Tensor) -> AbstractContextManager[None]:
        """Count and time one call on `whole`, which the block makes."""
        self.count(purpose, operation, _bytes(whole))
        return self.meter.waiting(f"{self.name}.{purpose}", whole.is_cuda)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _row_bytes(rows: Tensor) -> int:
    return int(torch.Size(rows.shape[1:]).numel()) * rows.element_size()
