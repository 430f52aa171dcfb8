"""Buckets: parameters whose gradients are summed together, in one flat buffer laid out for the way the sum takes.

A route says over whom: over the replicas on this rank's node (`inside`), then over one rank of every node (`between`). Where replicas are on
several nodes, the buffer has one segment for each rank inside, with that rank's part of every parameter: rows of dim 0, cut as evenly as they go
and padded with zeros, as FSDP2 cuts. So a reduce-scatter inside leaves every rank whole rows of every parameter to exchange between the nodes, which
compression can tell apart, and whose residuals are pieces of a tensor that any layout can cut anew (`residual.py`).

Parameters of one route are cut into buckets of about `layout.bucket_mb` in reverse order of registration, which is roughly the order in which
backward finishes them (Li et al., "PyTorch Distributed", VLDB 2020, section 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from penstock.comm.axis import Axis


@dataclass(frozen=True)
class Route:
    """The way of a gradient's sum: over the ranks `inside` the node, `between` the nodes over those that hold the same segment, and `back` inside."""

    inside: Axis
    between: Axis = field(default_factory=lambda: Axis("none"))
    #: The ranks inside again, with another process group.
    back: Axis = field(default_factory=lambda: Axis("none"))

    @property
    def size(self) -> int:
        """Replicas that are summed."""
        return self.inside.size * self.between.size

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        """What routes that may share a bucket have in common."""
        return self.inside.ranks, self.between.ranks


@dataclass(frozen=True)
class Piece:
    """This rank's rows of one parameter's gradient, between the nodes: a view of the bucket's own segment."""

    parameter: nn.Parameter
    view: Tensor


class Bucket:
    """Parameters of one route and the buffers of their sum."""

    def __init__(self, parameters: list[nn.Parameter], route: Route) -> None:
        self.parameters, self.route = parameters, route
        parts = route.inside.size if route.between.size > 1 else 1
        shapes = [rows_of(local(p), parts) for p in parameters]
        self._numels = [math.prod(shape) for shape in shapes]
        segment = sum(self._numels)
        self.flat = local(parameters[0]).new_zeros(parts * segment)
        #: What this rank exchanges between nodes, and the sum that comes of it.
        self.own = self.flat if parts == 1 else self.flat.new_zeros(segment)
        views = self.own.split(self._numels)
        self.pieces = [Piece(p, view.view(shape)[: _rows_here(local(p), parts, route)]) for p, shape, view in zip(parameters, shapes, views)]
        self._parts = parts

    def gradients(self) -> list[Tensor]:
        """The gradients as this rank holds them; one that never came is zero."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [local(parameter.grad) for parameter in self.parameters if parameter.grad is not None]

    def fill(self, tensors: list[Tensor]) -> None:
        """Copy one tensor of each parameter, in its local shape, into the buffer."""
        torch._foreach_copy_(*self._views(self.flat, tensors))

    def spread(self, tensors: list[Tensor]) -> None:
        """Copy the buffer into one tensor of each parameter."""
        views, parts = self._views(self.flat, tensors)
        torch._foreach_copy_(parts, views)

    def take_away(self, tensors: list[Tensor]) -> None:
        """Subtract one tensor of each parameter from the buffer."""
        torch._foreach_sub_(*self._views(self.flat, tensors))

    def subtract(self, flat: Tensor, tensors: list[Tensor], scale: float = 1.0) -> None:
        """Subtract `scale` times what is laid out like the buffer from one tensor of each parameter."""
        views, parts = self._views(flat, tensors)
        torch._foreach_sub_(parts, views, alpha=scale)

    def _views(self, flat: Tensor, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Parts of a buffer and the parts of the tensors that belong in them."""
        views, parts = [], []
        segments = [segment.split(self._numels) for segment in flat.split(sum(self._numels))] if flat.numel() else []
        for index, tensor in enumerate(tensors):
            rows = rows_of(tensor, self._parts)[0]
            for place, segment in enumerate(segments):
                part = tensor[place * rows : (place + 1) * rows] if tensor.ndim else tensor.view(1)
                if part.numel():
                    views.append(segment[index][: part.numel()].view_as(part))
                    parts.append(part)
        return views, parts


def rows_of(tensor: Tensor, parts: int) -> tuple[int, ...]:
    """Shape of a full part of a tensor cut into so many along dim 0."""
    return (-(-tensor.shape[0] // parts), *tensor.shape[1:]) if tensor.ndim else (1,)


def _rows_here(tensor: Tensor, parts: int, route: Route) -> int:
    rows = rows_of(tensor, parts)[0]
    place = route.inside.index if parts > 1 else 0
    return max(0, min(rows, (tensor.shape[0] if tensor.ndim else 1) - place * rows))


def local(tensor: Tensor) -> Tensor:
    """The plain tensor that this rank holds of a parameter or gradient, which FSDP2 makes a DTensor; it shares its memory."""
    here: Any = tensor.detach()
    return here.to_local() if is_sharded(here) else here


def is_sharded(tensor: Tensor) -> bool:
    """Whether FSDP2 made a DTensor of it; asked in this way because only a run that shards need import that class, which takes a second."""
    return hasattr(tensor, "to_local")


def cut_buckets(parameters: list[tuple[nn.Parameter, Route]], limit_bytes: int) -> list[tuple[list[nn.Parameter], Route]]:
    """Parameters of each route in reverse order, in buckets of at most `limit_bytes` (or one parameter), each with its route."""
    buckets: list[tuple[list[nn.Parameter], Route]] = []
    open_bucket: dict[tuple[tuple[int, ...], ...], list[nn.Parameter]] = {}
    for parameter, route in reversed(parameters):
        bucket = open_bucket.get(route.key)
        if bucket is None or sum(_bytes(p) for p in bucket) + _bytes(parameter) > limit_bytes:
            bucket = open_bucket[route.key] = []
            buckets.append((bucket, route))
        bucket.append(parameter)
    return buckets


def _bytes(parameter: nn.Parameter) -> int:
    return local(parameter).numel() * parameter.element_size()
