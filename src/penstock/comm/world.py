"""This process among the others: rank, size, device, and the few small agreements the engine needs.

Every collective of Penstock is called through this room (`axis.py`), so that its bytes are counted (`meter.py`) and its
wait has a deadline (`layout.timeout_s`): a rank that waits longer raises, and the launcher ends the job with
the rank's name instead of hanging.

A world of one rank has no process group and every agreement is the identity, so a laptop run pays nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from penstock.comm.axis import Axis
from penstock.comm.meter import ByteMeter
from penstock.comm.nodes import told_nodes
from penstock.config import UserError


@dataclass(frozen=True)
class World:
    """Rank and size of this process, the device it computes on, the meter of its traffic, and its process groups."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    meter: ByteMeter = field(default_factory=ByteMeter)
    #: Process groups that exist, by their ranks (of a link: "link", from, to); all ranks make them together.
    groups: dict[tuple[int | str, ...], dist.ProcessGroup] = field(default_factory=dict)
    #: The node of every rank; empty: all are on one. And which `exchange.topology` says so.
    nodes: tuple[int, ...] = ()
    topology: str = "auto"

    @property
    def is_lead(self) -> bool:
        """Whether this rank writes what is written once: metrics, live line, report."""
        return self.rank == 0

    @cached_property
    def axis(self) -> Axis:
        """All ranks as one axis."""
        return Axis("world", tuple(range(self.size)), self.rank, dist.group.WORLD if self.size > 1 else None, self.meter, self.nodes)

    def sum_(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Sum `tensor` over all ranks in place and return it."""
        return self.axis.all_reduce(tensor, name)

    def gather_numbers(self, value: float, name: str) -> list[float]:
        """One number from every rank, in rank order."""
        if self.size == 1:
            return [value]
        row = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        row[self.rank] = value
        return self.sum_(row, name).tolist()

    def share(self, text: str, source: int = 0) -> str:
        """The text of the rank `source`, on every rank."""
        if self.size == 1:
            return text
        data = torch.tensor(list(text.encode()) if self.rank == source else [], dtype=torch.uint8, device=self.device)
        length = int(max(self.gather_numbers(float(len(data)), "share")))
        room = data if self.rank == source else torch.empty(length, dtype=torch.uint8, device=self.device)
        return bytes(self.axis.broadcast(room, source, "share").tolist()).decode()

    def any(self, flag: bool, name: str) -> bool:
        """Whether the flag is set on any rank."""
        return any(self.gather_numbers(float(flag), name))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather_numbers(0.0, "barrier")


def under_launcher() -> bool:
    """Whether torchrun (or Penstock's own `--nproc`) started this process as one rank of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of `run.device`; raises `UserError` where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device = 'cuda', but torch finds no CUDA device here; use --set run.device=cpu or install a CUDA build of torch")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"local rank {local_rank} has no GPU: the host has {torch.cuda.device_count()}; start at most that many ranks on it")
    return torch.device("cuda", local_rank)


def join_world(device_name: str, timeout_s: float, store: Store | None = None) -> World:
    """Join the process group described by the launcher's environment, or form a world of one; `store` is where its ranks meet, if not at the
    address that the environment names.
    """
    if not under_launcher():
        return World(device=choose_device(device_name))
    rank, size, local_rank = (int(os.environ.get(key, "0")) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = choose_device(device_name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1:
        _init_group(device, timeout_s, store, rank, size)
    world = World(rank=rank, size=size, local_rank=local_rank, device=device)
    world = replace(world, nodes=told_nodes(world))
    world.meter.take()  # joining is no part of the first step
    return world


def leave_world(world: World) -> None:
    """Leave the process group; harmless where there is none."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def _init_group(device: torch.device, timeout_s: float, store: Store | None, rank: int, size: int) -> None:
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        store = store or _store_of_attempt(timeout_s)
        given: dict[str, Any] = {} if store is None else {"store": store, "rank": rank, "world_size": size}
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), device_id=device if backend == "nccl" else None, **given)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        reason = str(error).splitlines()[0]
        hint = "is the port in use or another rank missing? Choose another with layout.port"
        raise UserError(f"the ranks could not meet at {where}: {reason}; {hint}") from None


def _store_of_attempt(timeout_s: float) -> Store | None:
    """Where the ranks of a job meet that torchrun has started again; None: where torch says.

    torchrun keeps its store over a restart, where gloo's ranks would find the addresses of those before them and wait for ranks that are gone
    (seen with torch 2.13). Keys of their own prevent that. Only on one node do all ranks know the same number of restarts.
    """
    again, nodes = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("GROUP_WORLD_SIZE", "1")
    if again == "0" or nodes != "1" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    kept = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=timeout_s))
    return PrefixStore(f"attempt {again}", kept)
