"""Summing gradients over the ranks that hold the same weights, in buckets, while the backward pass goes on.

Each parameter comes with the axis of its replicas. Parameters of one axis are cut into buckets of about `layout.bucket_mb` in reverse order
of registration, which is roughly the order in which backward finishes them (Li et al., "PyTorch Distributed", VLDB 2020, section 3.2).
When the last gradient of a bucket is ready during the *last* micro-batch, the bucket is copied into one flat buffer and its
all-reduce starts; the copy back waits in `finish`. Sums are left as sums: the engine weights the loss by the global token count, so no
rank average is ever taken. Of a parameter that FSDP2 shards, what FSDP has left on this rank is summed.

Buckets are fixed for the whole run and always started in the same order, so a resumed run reduces in the same order and continues bit for bit
(DistributedDataParallel rebuilds its buckets after the first step and may not), and no rank's control flow decides which collective
comes next. A parameter whose gradient never came (an unused branch) counts as zero.

Cost: one copy of the replicated parameters' gradients in flat buffers. When not to use it alone: where a replica of the weights
and moments does not fit; that is what a sharded layout is for.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from penstock.comm.axis import Axis


class GradientReducer:
    """Sums the gradient of each parameter over its axis, overlapped with backward.

    Call `arm()` before the backward of the last micro-batch and `finish()` after it; or, where micro-batches overlap, `begin()` before the first and
    `settle` for parameters as they become complete. Parameters whose axis is one rank are passed over.
    """

    def __init__(self, parameters: Iterable[tuple[nn.Parameter, Axis]], bucket_mb: float) -> None:
        self._buckets = cut_buckets([(p, axis) for p, axis in parameters if axis.size > 1], int(bucket_mb * 2**20))
        self._flat = [local(bucket[0]).new_zeros(sum(local(p).numel() for p in bucket)) for bucket, _ in self._buckets]
        self._bucket_of = {p: i for i, (bucket, _) in enumerate(self._buckets) for p in bucket}
        self._armed = False
        self._missing: list[int] = []
        self._works: list[dist.Work] = []
        for parameter in self._bucket_of:
            if not isinstance(parameter, DTensor):  # those of FSDP2 come on a stream of its own, and wait for `finish`
                parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def arm(self) -> None:
        """The next backward is the step's last: start each bucket as soon as it is complete."""
        self.begin()
        self._armed = True

    def begin(self) -> None:
        """Gradients are about to come, and will be settled by the caller."""
        self._missing = [len(bucket) for bucket, _ in self._buckets]
        self._works = []

    def settle(self, parameters: Iterable[nn.Parameter]) -> None:
        """The gradients of these parameters are complete: start the buckets that now are."""
        for parameter in parameters:
            if parameter in self._bucket_of and not isinstance(parameter, DTensor):
                self._count(parameter)

    def finish(self) -> None:
        """Start what is left, wait for all, and put the sums into `.grad`."""
        self._armed = False
        while len(self._works) < len(self._buckets):
            self._start(len(self._works))
        for (bucket, _), flat, work in zip(self._buckets, self._flat, self._works):
            work.wait()
            for parameter, piece in zip(bucket, _views(flat, bucket)):
                assert parameter.grad is not None
                local(parameter.grad).copy_(piece)

    def _on_gradient(self, parameter: Tensor) -> None:
        if self._armed:
            self._count(parameter)

    def _count(self, parameter: Tensor) -> None:
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        while len(self._works) < len(self._buckets) and self._missing[len(self._works)] == 0:
            self._start(len(self._works))

    def _start(self, index: int) -> None:
        (bucket, axis), flat = self._buckets[index], self._flat[index]
        for parameter, piece in zip(bucket, _views(flat, bucket)):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            piece.copy_(local(parameter.grad))
        self._works.append(axis.start_all_reduce(flat, "gradients"))


def local(tensor: Tensor) -> Tensor:
    """The plain tensor that this rank holds of a parameter or gradient, which FSDP2 makes a DTensor; it shares its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_buckets(parameters: list[tuple[nn.Parameter, Axis]], limit_bytes: int) -> list[tuple[list[nn.Parameter], Axis]]:
    """Parameters of each axis in reverse order, in buckets of at most `limit_bytes` (or one parameter), each with its axis."""
    buckets: list[tuple[list[nn.Parameter], Axis]] = []
    open_bucket: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for parameter, axis in reversed(parameters):
        bucket = open_bucket.get(axis.ranks)
        if bucket is None or sum(_bytes(p) for p in bucket) + _bytes(parameter) > limit_bytes:
            bucket = open_bucket[axis.ranks] = []
            buckets.append((bucket, axis))
        bucket.append(parameter)
    return buckets


def _bytes(parameter: nn.Parameter) -> int:
    return local(parameter).numel() * parameter.element_size()


def _views(flat: Tensor, bucket: list[nn.Parameter]) -> list[Tensor]:
    pieces = flat.split([local(p).numel() for p in bucket])
    return [piece.view_as(local(parameter)) for piece, parameter in zip(pieces, bucket)]
