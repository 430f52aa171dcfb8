"""One-way links between ranks: a rank sends tensors to another, which receives them in the order in which they were sent.

Each link has a process group of its own, two ranks and one direction, so that neither backend has to match messages (NCCL knows no tags)
and no exchange waits for another link's. The receiver says beforehand what will come, in which order and shape, keeps a few receives open, and
takes messages by their key in whatever order it needs them.

A sender goes on at once; a tensor on its way must not be written to. Every wait has the process group's deadline: a rank whose neighbour has died
or hangs raises `LinkError`, which says what was waited for, from whom.

Cost: the bytes themselves, counted as `<axis>.<purpose>`; the receiver holds up to `AHEAD` messages that it does not need yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from penstock.comm.meter import ByteMeter

#: Receives that a link keeps open before their messages are needed.
AHEAD = 2


class LinkError(RuntimeError):
    """A message did not come, or could not be sent: the rank at the other end has ended or hangs."""


class Sender:
    """This rank's end of a link that leads to global rank `to`, which may be `far`, on another node."""

    def __init__(self, to: int, group: dist.ProcessGroup, meter: ByteMeter, name: str, far: bool = False) -> None:
        self._to, self._group, self._meter, self._name, self._far = to, group, meter, name, far
        self._going: deque[tuple[Any, Tensor]] = deque()

    def send(self, tensor: Tensor, what: Hashable) -> None:
        """Begin to send a contiguous tensor."""
        n_bytes = tensor.numel() * tensor.element_size()
        self._meter.count(self._name, n_bytes, "send", n_bytes if self._far else 0)
        try:
            self._going.append((dist.isend(tensor, self._to, self._group), tensor))
        except RuntimeError as error:
            raise LinkError(f"sending {what} to rank {self._to} failed: {_first_line(error)}; that rank has ended, see its own error") from error
        while self._going and self._going[0][0].is_completed():
            self._going.popleft()

    def finish(self) -> None:
        """Wait until everything has been sent."""
        while self._going:
            try:
                self._going.popleft()[0].wait()
            except RuntimeError as error:
                raise LinkError(f"rank {self._to} did not take what was sent to it: {_first_line(error)}; see its own error") from error


class Receiver:
    """This rank's end of a link that comes from global rank `source`."""

    def __init__(self, source: int, group: dist.ProcessGroup) -> None:
        self._source, self._group = source, group
        self._expected: deque[Hashable] = deque()
        self._open: deque[tuple[Hashable, Any, Tensor]] = deque()
        self._here: dict[Hashable, Tensor] = {}

    def expect(self, keys: Sequence[Hashable], empty: Callable[[Any], Tensor]) -> None:
        """What comes next, in the order in which it is sent; `empty` makes room for a message. Everything expected before must have been taken."""
        assert not (self._expected or self._open or self._here), "messages of the pass before are still under way"
        self._expected.extend(keys)
        self._empty = empty
        self._refill()

    def take(self, key: Hashable) -> Tensor:
        """The message `key`, waited for."""
        while key not in self._here:
            came, work, tensor = self._open.popleft()
            try:
                work.wait()
            except RuntimeError as error:
                text = _first_line(error)
                raise LinkError(f"{came} did not come from rank {self._source}: {text}; that rank has ended or hangs, see its own error") from error
            self._here[came] = tensor
            self._refill()
        return self._here.pop(key)

    def _refill(self) -> None:
        while self._expected and len(self._open) < AHEAD:
            key = self._expected.popleft()
            tensor = self._empty(key)
            self._open.append((key, dist.irecv(tensor, self._source, self._group), tensor))


@dataclass(frozen=True)
class Links:
    """A rank's links to others, by the place of the other end."""

    senders: Mapping[int, Sender]
    receivers: Mapping[int, Receiver]


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
