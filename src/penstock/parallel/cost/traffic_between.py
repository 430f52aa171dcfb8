"""What the exchange of a bucket sends between nodes, of every kind: the slow network's part of the estimate.

    dense       an all-reduce of all n numbers
    topk        a message to every other node:  k = ⌈density · n⌉ indices of H(k/n) · n/k bits and values of the format's; vectors by all-reduce
    periodic    the same every `every` steps, all tensors chosen from
    powersgd    two factors, rank × (rows + columns) numbers of each matrix, and vectors, by all-reduce
    auto        as dense, where it begins

Messages are estimated by the entropy of indices that may lie anywhere, which the codec comes within 0.1 bit of (docs/benchmarks.md), without their
headers. Cost: nothing runs. When not to use it: for the steps of topk's warm-up and the last meeting of periodic, which send more.
"""

from __future__ import annotations

import math

from penstock.comm import build_between
from penstock.comm.codec import expected_bytes, kept
from penstock.comm.gradients.periodic import Periodic
from penstock.comm.gradients.powersgd import PowerSGD
from penstock.comm.gradients.topk import TopK
from penstock.config import ExchangeSection
from penstock.parallel.cost.traffic import Collective


def between_traffic(shapes: list[tuple[int, ...]], cuttable: list[bool], nodes: int, width: int, section: ExchangeSection) -> list[Collective]:
    """Collectives between `nodes` of a bucket in which a rank has tensors of these `shapes`, `width` bytes a number.

    `cuttable` says which of them any layout can cut anew, without which topk and powersgd send all.
    """
    kind = build_between(section, lambda parameter: True)
    if isinstance(kind, Periodic):
        return [_messages([math.prod(shape) for shape in shapes], kind.density, nodes, section, kind.every)]
    chosen = [kind.compresses(shape) and cut for shape, cut in zip(shapes, cuttable)]
    whole = sum(math.prod(shape) for shape, of_it in zip(shapes, chosen) if not of_it)
    picked = [shape for shape, of_it in zip(shapes, chosen) if of_it]
    if isinstance(kind, TopK):
        return [_reduced(whole * width), _messages([math.prod(shape) for shape in picked], kind.density, nodes, section)]
    if isinstance(kind, PowerSGD):
        rows, columns = (sum(kind.rank * math.prod(shape[:-2]) * shape[dim] for shape in picked) for dim in (-2, -1))
        return [_reduced((columns + whole) * width), _reduced(rows * width)]
    return [_reduced(whole * width)]


def _reduced(n_bytes: int) -> Collective:
    return Collective(("node",), "gradients", "all_reduce", n_bytes)


def _messages(numels: list[int], density: float, nodes: int, section: ExchangeSection, every: int = 1) -> Collective:
    """Every node's message to all others, of tensors of so many entries; on average over `every` steps."""
    entries, chosen = sum(numels), sum(kept(numel, density) for numel in numels if numel)
    message = expected_bytes(entries, chosen, section.values)
    return Collective(("node",), "gradients", "all_gather", round(nodes * message / every))
