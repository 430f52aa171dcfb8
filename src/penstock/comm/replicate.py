"""Plain data parallelism: gradients summed over ranks in buckets while the backward pass goes on.

Parameters are cut into buckets of about `layout.bucket_mb` in reverse order of registration, which is roughly
the order in which backward finishes them (Li et al., "PyTorch Distributed", VLDB 2020, section 3.2). When the
last gradient of a bucket is ready during the *last* micro-batch, the bucket is copied into one flat float32
buffer and its all-reduce starts; the copy back waits in `finish`. Sums are left as sums: the engine weights the
loss by the global token count, so no rank average is ever taken.

Buckets are fixed for the whole run and always started in the same order, so a resumed run reduces in the same
order and continues bit for bit (DistributedDataParallel rebuilds its buckets after the first step and may not), and no
rank's control flow decides which collective comes next. A parameter whose gradient never came (an unused
branch) counts as zero.

Cost: one float32 copy of the gradients in flat buffers. When not to use it: where a replica of the weights and
moments does not fit; that is what a sharded layout is for.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from penstock.comm.world import World


class GradientReducer:
    """Sums the gradients of `parameters` over the ranks of `world`, overlapped with backward.

    Call `arm()` before the backward of the last micro-batch and `finish()` after it. In a world of one rank both
    do nothing and no buffer is held.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World, bucket_mb: float) -> None:
        self._world = world
        self._buckets = _cut_buckets(list(parameters), int(bucket_mb * 2**20)) if world.size > 1 else []
        self._flat = [torch.zeros(sum(p.numel() for p in bucket), device=world.device) for bucket in self._buckets]
        self._bucket_of = {p: i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._armed = False
        self._missing: list[int] = []
        self._works: list[dist.Work] = []
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def arm(self) -> None:
        """The next backward is the step's last: start each bucket as soon as it is complete."""
        self._armed = True
        self._missing = [len(bucket) for bucket in self._buckets]
        self._works = []

    def finish(self) -> None:
        """Start what is left, wait for all, and put the sums into `.grad`."""
        self._armed = False
        while len(self._works) < len(self._buckets):
            self._start(len(self._works))
        for bucket, flat, work in zip(self._buckets, self._flat, self._works):
            work.wait()
            for parameter, piece in zip(bucket, _views(flat, bucket)):
                assert parameter.grad is not None
                parameter.grad.copy_(piece)

    def _on_gradient(self, parameter: Tensor) -> None:
        if not self._armed:
            return
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        while len(self._works) < len(self._buckets) and self._missing[len(self._works)] == 0:
            self._start(len(self._works))

    def _start(self, index: int) -> None:
        bucket, flat = self._buckets[index], self._flat[index]
        for parameter, piece in zip(bucket, _views(flat, bucket)):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            piece.copy_(parameter.grad)
        self._world.meter.count("gradient", flat.numel() * flat.element_size())
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._works.append(work)


def _cut_buckets(parameters: list[nn.Parameter], limit_bytes: int) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = [[]]
    held = 0
    for parameter in reversed([p for p in parameters if p.requires_grad]):
        size = parameter.numel() * 4
        if buckets[-1] and held + size > limit_bytes:
            buckets.append([])
            held = 0
        buckets[-1].append(parameter)
        held += size
    return buckets


def _views(flat: Tensor, bucket: list[nn.Parameter]) -> list[Tensor]:
    pieces = flat.split([p.numel() for p in bucket])
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, bucket)]
