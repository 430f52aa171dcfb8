"""What is done to a rank, from inside its process: the same that the system, the network or the disk would do to it.

Signals, refused allocations and closed connections are the real ones. A full disk is the error that the system would give, for the files of one
snapshot and one rank: a disk that is really full cannot be had without a privilege. A stall is a sleep at every phase's begin.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from penstock.lab.chaos.desk import Desk
from penstock.lab.chaos.plan import Fault
from penstock.store import Snapshot, list_snapshots, read_manifest

#: Steps that a slow rank is slow for, and seconds of a stall, by the fault's choice.
SLOW_STEPS, STALL_S = 4, (0.02, 0.05, 0.1)
#: More bytes than any machine has addresses for.
TOO_MUCH = 1 << 60


class Planted(Exception):
    """The error that the lab plants."""


@dataclass(frozen=True)
class Place:
    """Where a fault strikes: the lab's folder, the run, and the generation of this rank."""

    desk: Desk
    run: Path
    generation: int


def kill(fault: Fault, place: Place) -> None:
    """SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_both(fault: Fault, place: Place) -> None:
    """SIGKILL of this rank and another."""
    _kill_ranks(place, {fault.other % int(os.environ["WORLD_SIZE"])})


def kill_all(fault: Fault, place: Place) -> None:
    """SIGKILL of every rank."""
    _kill_ranks(place, range(int(os.environ["WORLD_SIZE"])))


def stop(fault: Fault, place: Place) -> None:
    """SIGSTOP."""
    os.kill(os.getpid(), signal.SIGSTOP)


def stick(fault: Fault, place: Place) -> None:
    """Wait for ever."""
    while True:
        time.sleep(1.0)


def fail(fault: Fault, place: Place) -> None:
    """Raise an error of one's own."""
    raise Planted(f"fault {fault.number} of the fault lab")


def exhaust(fault: Fault, place: Place) -> None:
    """Ask Python's allocator or torch's for more than there is; or fail as a device does that has run out."""
    if fault.choice == 0:
        bytearray(TOO_MUCH)
    elif fault.choice == 1:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    raise torch.OutOfMemoryError(f"fault {fault.number} of the fault lab: out of memory")


def cut(fault: Fault, place: Place) -> None:
    """Close the connection to another rank that was used last, or all of them."""
    kept = {c.laddr.port for c in psutil.Process(place.desk.supervisor()).net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    found = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED and c.raddr.port not in kept]
    with ExitStack() as opened:
        ends = [opened.enter_context(socket.socket(fileno=os.dup(connection.fd))) for connection in found]
        for end in sorted(ends, key=_idle_ms)[: 1 if fault.choice == 0 else None]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _idle_ms(end: socket.socket) -> int:
    """Milliseconds since a connection sent data: `tcpi_last_data_sent` of Linux's struct tcp_info, 44 bytes from its start."""
    return int.from_bytes(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)[44:48], sys.byteorder)


def refuse_disk(fault: Fault, place: Place) -> None:
    """Refuse every write of this process to the files of this step's snapshot, as a full disk does."""
    kept, step = os.write, f"step-{fault.step:08d}"

    def write(descriptor: int, data: bytes | memoryview) -> int:
        file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if file.name.startswith(step) and place.run.resolve() in file.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return kept(descriptor, data)

    os.write = write  # type: ignore[assignment]


def damage(fault: Fault, place: Place) -> None:
    """Damage what is stored of the newest snapshot alone, and kill every rank."""
    newest = list_snapshots(place.run)[-1]
    for file in _own_files(newest, place.run) if fault.choice else [newest.path]:
        with open(file, "r+b") as data:
            size = data.seek(0, os.SEEK_END)
            if fault.choice == 1:
                data.truncate(size // 2)
            else:
                data.seek(size // 2)
                data.write(bytes(255 - byte for byte in os.pread(data.fileno(), 16, size // 2)))
    kill_all(fault, place)


def terminate(fault: Fault, place: Place) -> None:
    """SIGTERM of the whole run."""
    os.kill(place.desk.supervisor(), signal.SIGTERM)


def behead(fault: Fault, place: Place) -> None:
    """SIGKILL of the supervisor."""
    os.kill(place.desk.supervisor(), signal.SIGKILL)


#: What is done by its name in `kinds.py`; "slow" is up to `strike.py`, as it lasts.
ACTS: dict[str, Callable[[Fault, Place], None]] = {
    "kill": kill, "kill-both": kill_both, "kill-all": kill_all, "stop": stop, "stick": stick, "error": fail, "memory": exhaust, "link": cut,
    "disk": refuse_disk, "damage": damage, "terminate": terminate, "behead": behead,
}  # fmt: skip


def snapshots_there(run: Path) -> int:
    """How many snapshots a run has."""
    return len({snapshot.step for snapshot in list_snapshots(run)})


def _own_files(snapshot: Snapshot, run: Path) -> list[Path]:
    """The packs that were written for a snapshot."""
    packs = [run / "packs" / pack for pack in read_manifest(snapshot).packs if pack.startswith(f"step-{snapshot.step:08d}")]
    return [pack for pack in packs if pack.exists()] or [snapshot.path]


def _kill_ranks(place: Place, ranks: Collection[int]) -> None:
    """SIGKILL of ranks, and of this one last."""
    for pid, rank in place.desk.ranks(place.generation).items():
        if rank in ranks and pid != os.getpid():
            os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
