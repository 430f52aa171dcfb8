"""The part of `exchange` on real ranks: `python -m benchmarks.exchange_ranks FOLDER` on the nodes of an emulated cluster.

Every rank sums the same matrices' gradients, random ones, over all ranks: flat, by way of the nodes, and compressed. Answers in
`FOLDER/figures.json`, of rank 0: the longest of all ranks' seconds, bytes by the meter and by the interface's own counters.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.rank import answer
from penstock.comm import GradientReducer, World, build_between
from penstock.config import ExchangeSection
from penstock.parallel import Layout, Mesh, Placement
from penstock.parallel.layout import nodes_of_replicas

SIDE, MATRICES, TURNS, BUCKET_MB = 1024, 10, 5, 4.0
COUNTER = Path("/sys/class/net/lab0/statistics/tx_bytes")
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "flat": (False, {}),
    "hierarchical": (True, {}),
    "topk_5pct": (True, {"kind": "topk", "density": 0.05}),
    "topk_1pct": (True, {"kind": "topk", "density": 0.01}),
    "powersgd": (True, {"kind": "powersgd", "rank": 8}),
}


class Contestant:
    """One way of summing the matrices' gradients over all ranks."""

    def __init__(self, world: World, by_nodes: bool, settings: dict[str, Any]) -> None:
        self.world = world
        nodes = nodes_of_replicas(world.nodes, 1, world.size) if by_nodes else 1
        mesh = Mesh(Layout(replicate=world.size // nodes, node=nodes), world)
        self.parameters = [nn.Parameter(torch.zeros(SIDE, SIDE)) for _ in range(MATRICES)]
        route, between = mesh.route(Placement((SIDE, SIDE))), build_between(ExchangeSection(**settings), lambda parameter: True)
        self.reducer = GradientReducer([(parameter, route) for parameter in self.parameters], BUCKET_MB, world.meter, between)

    def fill(self, turn: int) -> None:
        """New gradients, as heavy-tailed as those of language models are: normal numbers of very different scales."""
        generator = torch.Generator().manual_seed(1000 * turn + self.world.rank)
        for parameter in self.parameters:
            rows = torch.randn(SIDE, 1, generator=generator).exp()
            parameter.grad = torch.randn(SIDE, SIDE, generator=generator) * rows

    def sum_(self, step: int, compute_s: float = 0.0, overlapped: bool = True) -> tuple[float, float]:
        """Sum the gradients, which a backward pass of `compute_s` brings one after the other; returns all seconds, and those after that pass."""
        self.world.barrier()
        began = time.perf_counter()
        self.reducer.begin_step(step)
        self.reducer.begin()
        for parameter in reversed(self.parameters):
            time.sleep(compute_s / MATRICES)
            if overlapped:
                self.reducer.settle([parameter])
        if not overlapped:
            self.reducer.settle(reversed(self.parameters))
        computed = time.perf_counter()
        self.reducer.finish()
        self.reducer.between.commit()
        return tuple(max(self.world.gather_numbers(s, "time")) for s in (time.perf_counter() - began, time.perf_counter() - computed))  # type: ignore[return-value]


def figures(world: World) -> dict[str, float]:
    """Seconds and bytes of every kind; the kinds take turns."""
    contestants = {name: Contestant(world, *how) for name, how in KINDS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    exposed: dict[str, list[float]] = {}
    found: dict[str, float] = {}
    for turn in range(1 + TURNS):
        for name, contestant in contestants.items():
            contestant.fill(turn)
            world.meter.take()
            before = int(COUNTER.read_text())
            took, _ = contestant.sum_(turn)
            counted = int(COUNTER.read_text()) - before
            metered = sum(n for key, n in world.meter.take().items() if key.endswith("_between_bytes"))
            if turn:
                seconds[name].append(took)
                found[f"{name}_metered"] = sum(world.gather_numbers(metered, "bytes")) / len(set(world.nodes))
                found[f"{name}_counted"] = sum(world.gather_numbers(counted, "bytes")) / world.size  # every rank sees its node's counter
    for name in ("hierarchical", "topk_5pct"):
        compute_s = 1.5 * statistics.median(seconds[name])
        for overlapped in (True, False):
            after = exposed[f"{name}_{overlapped}"] = []
            for turn in range(3):
                contestants[name].fill(turn)
                after.append(contestants[name].sum_(turn, compute_s, overlapped)[1])
        found[f"{name}_exposed_share"] = statistics.median(exposed[f"{name}_True"]) / statistics.median(exposed[f"{name}_False"])
    for name, values in seconds.items():
        found |= {f"{name}_s": statistics.median(values), f"{name}_low_s": min(values), f"{name}_high_s": max(values)}
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.exit(answer(folder, figures, 120.0))
