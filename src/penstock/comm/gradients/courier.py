"""A courier: a thread that takes one leg of the exchanges of a step's buckets, one bucket after the other, while the backward pass goes on.

An exchange between nodes is several collectives with work between them (gather what was scattered, code, decode), so it cannot be one asynchronous
call. Each leg has a courier, so that the slow network is busy with one bucket while the next is summed inside the node and the last gathered there.
All groups of a leg are its own: no other thread's collectives share one with it, so the order within each group is the same on all ranks.
On CUDA it works on a stream of its own, which first waits for the gradients.

An error of an exchange is raised where the bucket is waited for. Cost: a thread; on a CPU with no core to spare, what it computes takes time from the
backward pass, and only its waiting is hidden. The thread is a daemon: it never keeps a failed rank from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

import torch

from penstock.comm.beside import compute_alone
from penstock.comm.meter import ByteMeter


class Parcel:
    """One exchange under way."""

    def __init__(self, action: Callable[[], None], after: list[torch.cuda.Event], before: Parcel | None) -> None:
        self.action, self.after, self.before = action, after, before
        self.done: Future[torch.cuda.Event | None] = Future()

    def wait(self) -> None:
        """Wait until the exchange is done, the current stream too; raises its error."""
        event = self.done.result()
        if event is not None:
            torch.cuda.current_stream().wait_event(event)


class Courier:
    """The thread; made at its first parcel."""

    def __init__(self, device: torch.device, meter: ByteMeter, leg: str) -> None:
        self._device, self._meter, self._leg = device, meter, leg
        self._parcels: SimpleQueue[Parcel] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def take(self, action: Callable[[], None], after: list[torch.cuda.Event] | None = None, before: Parcel | None = None) -> Parcel:
        """Do `action` when what was taken earlier is done, another courier's parcel `before` it, and the device has come past the events."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"penstock-{self._leg}", daemon=True)
            self._thread.start()
        parcel = Parcel(action, after or [], before)
        self._parcels.put(parcel)
        return parcel

    def _work(self) -> None:
        on_cuda = self._device.type == "cuda"
        stream = torch.cuda.Stream(self._device) if on_cuda else None
        self._meter.run_aside()
        compute_alone()
        while True:
            parcel = self._parcels.get()
            try:
                with torch.no_grad(), torch.cuda.stream(stream):
                    if parcel.before is not None:
                        parcel.before.wait()
                    for event in parcel.after:
                        torch.cuda.current_stream().wait_event(event)
                    parcel.action()
                    done = torch.cuda.current_stream().record_event() if on_cuda else None
            except BaseException as error:  # the main thread raises it
                parcel.done.set_exception(error)
                continue
            parcel.done.set_result(done)
