"""The courier: a thread that takes the exchanges of a step's buckets, one after the other, while the backward pass goes on.

An exchange between nodes is several collectives with work between them (gather what was scattered, code, decode), so it cannot be one asynchronous
call. All its groups are its own: the main thread's collectives never share one with it, so the order within each group is the same on all ranks.
On CUDA it works on a stream of its own, which first waits for the gradients.

An error of an exchange is raised where the bucket is waited for. Cost: a thread; on a CPU with no core to spare, what it computes takes time from the
backward pass, and only its waiting is hidden. The thread is a daemon: it never keeps a failed rank from ending.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

import torch

from penstock.comm.meter import ByteMeter


class Parcel:
    """One exchange under way."""

    def __init__(self, action: Callable[[], None], after: list[torch.cuda.Event]) -> None:
        self.action, self.after = action, after
        self.done: Future[torch.cuda.Event | None] = Future()

    def wait(self) -> None:
        """Wait until the exchange is done, the current stream too; raises its error."""
        event = self.done.result()
        if event is not None:
            torch.cuda.current_stream().wait_event(event)


class Courier:
    """The thread; made at its first parcel."""

    def __init__(self, device: torch.device, meter: ByteMeter) -> None:
        self._device, self._meter = device, meter
        self._parcels: SimpleQueue[Parcel] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def take(self, action: Callable[[], None], after: list[torch.cuda.Event]) -> Parcel:
        """Do `action` when what was taken before is done and the device has come past the events."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="penstock-exchange", daemon=True)
            self._thread.start()
        parcel = Parcel(action, after)
        self._parcels.put(parcel)
        return parcel

    def _work(self) -> None:
        on_cuda = self._device.type == "cuda"
        stream = torch.cuda.Stream(self._device) if on_cuda else None
        self._meter.run_aside()
        while True:
            parcel = self._parcels.get()
            began = time.perf_counter()
            try:
                with torch.no_grad(), torch.cuda.stream(stream):
                    for event in parcel.after:
                        torch.cuda.current_stream().wait_event(event)
                    parcel.action()
                    done = torch.cuda.current_stream().record_event() if on_cuda else None
            except BaseException as error:  # the main thread raises it
                parcel.done.set_exception(error)
                continue
            self._meter.add_seconds("exchange.busy", time.perf_counter() - began)
            parcel.done.set_result(done)
