"""Which ranks share a node: told by the launcher, by the hosts' names, or found by timing the links.

torchrun numbers the nodes in `GROUP_RANK`; without it ranks whose hosts have one name are together. Where neither is true to the network
(containers with names of their own, a rack of fast switches between slow ones), `measured_nodes` times messages between every pair of ranks
and puts together those whose link is nearer to the fastest than to the slowest.

Cost: one number a rank. Measured: (ranks - 1) rounds of `PROBES` messages of 1 MiB, which is seconds on a slow network; for hundreds of ranks say
it by hand (`exchange.topology = '16x8'`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import xxhash

if TYPE_CHECKING:
    from penstock.comm.world import World

#: Messages timed on each link, of which the quickest counts, and the elements (float32) of one.
PROBES, PROBE_ELEMENTS = 3, 1 << 18
#: Links are all of one kind if the slowest takes less than this many times the fastest.
CLEARLY_SLOWER = 3.0


def told_nodes(world: World) -> tuple[int, ...]:
    """The node of every rank, numbered in order of appearance, as launcher or host names tell; all ranks must call it."""
    name = os.environ.get("GROUP_RANK") or socket.gethostname()
    key = xxhash.xxh3_64(name.encode()).intdigest() >> 16  # a float64 holds 53 bits exactly
    return numbered(world.gather_numbers(float(key), "nodes"))


def measured_nodes(world: World) -> tuple[int, ...]:
    """The node of every rank, numbered in order of appearance, by the time of messages between all pairs; all ranks must call it."""
    size, rank = world.size, world.rank
    seconds = torch.zeros(size, size, dtype=torch.float64, device=world.device)
    tensor = torch.zeros(PROBE_ELEMENTS, device=world.device)
    for turn in _rounds(size):
        peer = turn[rank]
        for _ in range(PROBES if peer != rank else 0):
            began = time.perf_counter()
            first, then = (dist.send, dist.recv) if rank < peer else (dist.recv, dist.send)
            first(tensor, peer)
            then(tensor, peer)
            if tensor.is_cuda:
                torch.cuda.synchronize()
            best, took = seconds[rank, peer].item(), time.perf_counter() - began
            seconds[rank, peer] = took if best == 0.0 else min(best, took)
        world.barrier()
    world.sum_(seconds, "nodes")
    return clustered((seconds + seconds.T).tolist())


def clustered(seconds: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Nodes from the seconds of a message between each two ranks: linked are those nearer, as ratios go, to the quickest pair than to the slowest."""
    size = len(seconds)
    pairs = [seconds[a][b] for a in range(size) for b in range(a)]
    if not pairs or max(pairs) < CLEARLY_SLOWER * min(pairs):
        return (0,) * size
    limit = (max(pairs) * min(pairs)) ** 0.5
    node = list(range(size))
    for a in range(size):
        for b in range(a):
            if seconds[a][b] < limit:
                node = [node[b] if n == node[a] else n for n in node]
    return numbered(node)


def numbered(keys: Sequence[float]) -> tuple[int, ...]:
    """Equal keys as equal numbers from 0, in order of appearance."""
    order = list(dict.fromkeys(keys))
    return tuple(order.index(key) for key in keys)


def _rounds(size: int) -> list[list[int]]:
    """Rounds in which every two ranks meet once (the circle method); a rank that rests meets itself."""
    places = list(range(size + size % 2))
    rounds = []
    for _ in range(len(places) - 1):
        peer = list(range(size))
        for a, b in zip(places, reversed(places[len(places) // 2 :])):
            if a < size and b < size:
                peer[a], peer[b] = b, a
        rounds.append(peer)
        places = [places[0], places[-1], *places[1:-1]]
    return rounds
