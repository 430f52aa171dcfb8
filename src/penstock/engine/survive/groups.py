"""Process groups that can be left: those of one generation are aborted when the next is posted, or when this rank meets a lost one.

A rank that dies closes its connections, and whoever waits for it gets an error. Others wait for ranks that have left, not for the dead one; so a
thread waits for the next generation to be posted, and breaks this process's groups then, which ends every wait in them, the saver's and the
couriers' too. The rendezvous of groups goes through `Meeting`, whose waits end the same way.

NCCL's groups can be aborted. Gloo's cannot, nor do they close their connections while anybody still refers to them: so the sockets that this process
has opened since the generation began, except those to the supervisor's store, are shut down, which both ends take for a peer that is gone.

Cost: a thread that sleeps in a read of a socket.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from penstock.comm import LinkError
from penstock.engine.survive.wire import LOOK_S, Line

#: Words in the errors that torch's backends raise when a peer is gone; they have no class of their own.
_BROKEN = (
    "gloo", "connection closed", "connection reset", "connection refused", "broken pipe", "nccl", "process group", "aborted", "timed out", "socket",
    "communicat",
)  # fmt: skip


class GenerationOver(RuntimeError):
    """The ranks of this generation are not all there any more, and the next has been posted."""


class Meeting(Store):
    """A store for the rendezvous of a generation's groups: waits end when the generation does."""

    def __init__(self, store: Store, over: threading.Event, timeout_s: float) -> None:
        super().__init__()
        self._store, self._over, self._timeout = store, over, timedelta(seconds=timeout_s)

    def set(self, key: str, value: Any) -> None:
        """Say something."""
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        """What was said, when it is."""
        self.wait([key], self._timeout)
        return self._store.get(key)

    def add(self, key: str, value: int) -> int:
        """Count."""
        return self._store.add(key, value)

    def check(self, keys: list[str]) -> bool:
        """Whether all of it was said."""
        return self._store.check(keys)

    def delete_key(self, key: str) -> bool:
        """Take something back."""
        return self._store.delete_key(key)

    def compare_set(self, key: str, expected_value: Any, desired_value: Any) -> bytes:
        """Say something unless something else was said."""
        return self._store.compare_set(key, expected_value, desired_value)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait until all of it is said; raises `GenerationOver`, or `DistStoreError` past the deadline."""
        end = time.monotonic() + (timeout or self._timeout).total_seconds()
        while not self._store.check(keys):
            if self._over.is_set():
                raise GenerationOver(f"the generation ended while {keys[0]} was waited for")
            if time.monotonic() > end:
                raise dist.DistStoreError(f"timed out waiting for {keys[0]}")
            time.sleep(LOOK_S)


class Groups:
    """The process groups of generation `number`, as long as it lasts."""

    def __init__(self, port: int, number: int, timeout_s: float) -> None:
        self.over, self._lock = threading.Event(), threading.Lock()
        self._left, self._port, self._before = False, port, _sockets().keys()
        self._line = Line(port)
        self.store = Meeting(PrefixStore(f"gen{number}/", Line(port).store), self.over, timeout_s)
        threading.Thread(target=self._watch, args=(number + 1,), name="penstock-generation", daemon=True).start()

    def check(self) -> None:
        """Raise `GenerationOver` if it is."""
        if self.over.is_set():
            raise GenerationOver("the next generation has been posted")

    def leave(self, broken: bool = True) -> None:
        """Forget all groups, `broken` ones at once; harmless where there are none, or where it has been done."""
        with self._lock:
            self._left = True
            if dist.is_initialized():
                if broken:
                    self._break()
                with suppress(RuntimeError):
                    dist.destroy_process_group()
            # Groups are named by a count, and a generation that ended while its groups were made has counted on: newcomers begin with 0.
            dist.distributed_c10d._world.group_count = 0

    def _watch(self, following: int) -> None:
        try:
            self._line.generation(following)
        except RuntimeError:  # the store is gone, and so is the supervisor
            return
        self.over.set()
        with self._lock:
            if not self._left:
                self._break()

    def _break(self) -> None:
        """End every wait in every group of this process."""
        for group in list(dist.distributed_c10d._world.pg_map):
            with suppress(RuntimeError):
                group.abort()
        for inode, descriptor in _sockets().items():
            if inode not in self._before:
                _shut_down(descriptor, self._port)


def _sockets() -> dict[str, int]:
    """This process's sockets, by the system's name for each; nothing where it does not tell."""
    found = {}
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if (target := os.readlink(f"/proc/self/fd/{name}")).startswith("socket:"):
                    found[target] = int(name)
    return found


def _shut_down(descriptor: int, kept_port: int) -> None:
    """Shut a connection down, unless it leads to a port, or is none."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getpeername()[1] != kept_port:
            connection.shutdown(socket.SHUT_RDWR)


def is_broken(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes of, is that of an exchange with a rank that is gone."""
    while error is not None:
        if isinstance(error, (GenerationOver, LinkError, dist.DistError)):
            return True
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and any(word in str(error).lower() for word in _BROKEN):
            return True
        error = error.__cause__ or error.__context__
    return False
