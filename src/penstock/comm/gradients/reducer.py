"""Summing gradients over the ranks that hold the same weights, in buckets, while the backward pass goes on.

Each parameter comes with its route (`bucket.py`). When the last gradient of a bucket is there during the *last* micro-batch, its sum starts:

    all replicas on one node      an asynchronous all-reduce
    on several                    reduce-scatter inside the node → the exchange between nodes (`between.py`) → all-gather inside, by couriers

so the slow network carries each number once from every node, and ranks share the burden. `finish` waits, and puts the sums into `.grad`. They
are left as sums: the engine weights the loss by the global token count, so no rank average is ever taken. Of a parameter that FSDP2 shards,
what FSDP has left on this rank is summed; it comes in the same backward pass, so sharding, prefetch and accumulation go on as they are.

Buckets are fixed for the whole run and always started in the same order, so a resumed run reduces in the same order and continues bit for bit
(DistributedDataParallel rebuilds its buckets after the first step and may not), and no rank's control flow decides which collective
comes next. A parameter whose gradient never came (an unused branch) counts as zero.

Cost: one copy of the replicated parameters' gradients in flat buffers. When not to use it alone: where a replica of the weights
and moments does not fit; that is what a sharded layout is for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from penstock.comm.axis import all_gather_into, reduce_scatter_into
from penstock.comm.gradients.between import Between, Dense
from penstock.comm.gradients.bucket import Bucket, Route, cut_buckets, is_sharded
from penstock.comm.gradients.courier import Courier
from penstock.comm.meter import ByteMeter


class _Waitable(Protocol):
    def wait(self) -> object: ...


class GradientReducer:
    """Sums the gradient of each parameter over its route, overlapped with backward.

    Call `arm()` before the backward of the last micro-batch and `finish()` after it; or, where micro-batches overlap, `begin()` before the first and
    `settle` for parameters as they become complete. Parameters whose route is one rank are passed over.
    """

    def __init__(
        self, parameters: Iterable[tuple[nn.Parameter, Route]], bucket_mb: float, meter: ByteMeter | None = None, between: Between | None = None
    ) -> None:
        cut = cut_buckets([(p, route) for p, route in parameters if route.size > 1], int(bucket_mb * 2**20))
        self.buckets = [Bucket(bucket, route) for bucket, route in cut]
        #: What the exchange between nodes withholds of each parameter here, with a leading dim of one for the node; part of the training state.
        self.withheld: dict[nn.Parameter, Tensor] = {}
        self.switch(between or Dense())
        self._meter = meter or ByteMeter()
        self._bucket_of = {p: i for i, bucket in enumerate(self.buckets) for p in bucket.parameters}
        self._began = 0.0
        #: Seconds that the last step waited for its exchange.
        self.exposed_s = 0.0
        device = self.buckets[0].flat.device if self.buckets else torch.device("cpu")
        self._scatter, self._between, self._gather = (Courier(device, self._meter, leg) for leg in ("scatter", "between", "gather"))
        self._armed = False
        self._missing: list[int] = []
        self._events: list[list[torch.cuda.Event]] = []
        self._works: list[_Waitable] = []
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def switch(self, between: Between) -> None:
        """Exchange between nodes in that way from the next step on."""
        self.between = between
        self.withheld = between.prepare([bucket for bucket in self.buckets if bucket.route.between.size > 1])

    def begin_step(self, step: int) -> None:
        """Step number `step` comes."""
        self.between.begin(step)

    def arm(self) -> None:
        """The next backward is the step's last: start each bucket as soon as it is complete."""
        self.begin()
        self._armed = True

    def begin(self) -> None:
        """Gradients are about to come, and will be settled by the caller."""
        self._missing = [len(bucket.parameters) for bucket in self.buckets]
        self._events = [[] for _ in self.buckets]
        self._works = []

    def settle(self, parameters: Iterable[nn.Parameter]) -> None:
        """The gradients of these parameters are complete: start the buckets that now are.

        Not so where FSDP2 shards them, and may have yet to sum them over the shards; those wait for `finish`.
        """
        for parameter in parameters:
            if parameter in self._bucket_of and not is_sharded(parameter):
                self._count(parameter)

    def finish(self) -> None:
        """Start what is left, wait for all, and put the sums into `.grad`."""
        self._armed = False
        while len(self._works) < len(self.buckets):
            self._start(len(self._works))
        self.exposed_s = 0.0
        for bucket, work in zip(self.buckets, self._works):
            began = time.perf_counter()
            work.wait()
            self.exposed_s += time.perf_counter() - began
            bucket.spread(bucket.gradients())
        if self.buckets:
            self._meter.add_seconds("exchange.exposed", self.exposed_s)
            self._meter.add_seconds("exchange.span", time.perf_counter() - self._began)

    def _on_gradient(self, parameter: Tensor) -> None:
        if self._armed:
            self._count(parameter)

    def _count(self, parameter: Tensor) -> None:
        index = self._bucket_of[parameter]  # type: ignore[index]
        self._missing[index] -= 1
        if parameter.is_cuda:  # gradients of FSDP2 come on a stream of its own
            self._events[index].append(torch.cuda.current_stream().record_event())
        while len(self._works) < len(self.buckets) and self._missing[len(self._works)] == 0:
            self._start(len(self._works))

    def _start(self, index: int) -> None:
        bucket, events = self.buckets[index], self._events[index]
        if index == 0:
            self._began = time.perf_counter()
        if bucket.route.between.size > 1:
            if bucket.flat.is_cuda:
                events.append(torch.cuda.current_stream().record_event())
            scattered = self._scatter.take(partial(_scatter, bucket), events)
            summed = self._between.take(partial(self.between.sum_, bucket), before=scattered)
            self._works.append(self._gather.take(partial(_gather, bucket), before=summed))
            return
        for event in events:
            torch.cuda.current_stream().wait_event(event)
        bucket.fill(bucket.gradients())
        self._works.append(bucket.route.inside.start_all_reduce(bucket.flat, "gradients"))


def _scatter(bucket: Bucket) -> None:
    """Sum a bucket inside the node, each rank its part."""
    bucket.fill(bucket.gradients())
    inside = bucket.route.inside
    if inside.size > 1:
        with inside.counted("gradients", "reduce_scatter", bucket.flat):
            reduce_scatter_into(bucket.own, bucket.flat, group=inside.group)


def _gather(bucket: Bucket) -> None:
    """Give every rank of the node the parts of all."""
    inside = bucket.route.back
    if inside.size > 1:
        with inside.counted("gradients", "all_gather", bucket.flat):
            all_gather_into(bucket.flat, bucket.own, group=inside.group)
