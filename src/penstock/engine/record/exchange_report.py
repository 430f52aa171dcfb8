"""What a run's exchange came to: said at its start, and summed over all ranks at its end.

    bytes       summed over all ranks: what all networks of the job carried, as the meter counts it (`comm/meter.py`)
    dense       ring_bytes(all-reduce, 4 bytes an entry, nodes) of what each rank exchanges between nodes, times the steps
    exposed     seconds that a step waited for its exchange; hidden: the rest of the time from its first bucket's start to its last one's end; the
                mean over the ranks

Rows of metrics are the lead rank's, which says little of the others: with two nodes of two ranks, an axis over all four leaves the node at
the second and the fourth. So every rank adds up its own steps, and one all-reduce of seven numbers sums them.

`hidden` is an upper bound of what overlap saved: an exchange that is under way may itself be waiting for the next gradient.
Cost: a pass over a row of some twenty numbers a step. It covers the steps of this process: a resumed run begins again at nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from penstock.comm import GradientReducer, ring_bytes

if TYPE_CHECKING:
    from penstock.engine.build import Core

#: Bytes of an entry that is sent as it is, by which kinds of exchange are compared.
FLOAT32 = 4
#: Nodes whose ranks are all named; of more, the first ones and the last.
NAMED_NODES = 4


@dataclass
class ExchangeTotals:
    """Bytes and seconds of one rank's steps so far; `exchange` are the bytes between nodes of the exchange of gradients or weights alone."""

    steps: int = 0
    step_s: float = 0.0
    between: float = 0.0
    inside: float = 0.0
    exchange: float = 0.0
    exposed_s: float = 0.0
    hidden_s: float = 0.0

    def add(self, traffic: dict[str, float], seconds: float) -> None:
        """Add a step of so many seconds by what the meter took of it."""
        between = sum(n for name, n in traffic.items() if name.endswith("_between_bytes"))
        all_bytes = sum(n for name, n in traffic.items() if name.endswith("_bytes"))  # those between nodes are there twice
        exposed = traffic.get("exchange.exposed_s", 0.0)
        self.steps += 1
        self.step_s += seconds
        self.between += between
        self.inside += all_bytes - 2 * between
        self.exchange += sum(n for name, n in traffic.items() if name.startswith("node.") and name.endswith("_between_bytes"))
        self.exposed_s += exposed
        self.hidden_s += max(0.0, traffic.get("exchange.span_s", 0.0) - exposed)


def exchange_summary(parts: Core, totals: ExchangeTotals) -> dict[str, Any]:
    """The summary's `exchange`, the same on all ranks, which must all call it; `saved` is None where no sum over nodes is of this exchange."""
    t = totals
    own = [t.between, t.inside, t.exchange, float(t.steps * dense_bytes(parts.reducer)), t.exposed_s, t.hidden_s, t.step_s]
    row = torch.tensor(own, dtype=torch.float64, device=parts.world.device)
    between, inside, exchange, dense, *seconds = parts.world.sum_(row, "summary").tolist()
    exposed, hidden, step = (value / parts.world.size for value in seconds)
    return {
        "kind": parts.config.exchange.kind,
        "nodes": max(1, len(set(parts.world.nodes))),
        "steps": t.steps,
        "bytes_between": round(between),
        "bytes_inside": round(inside),
        "exchange_bytes": round(exchange),
        "dense_bytes": round(dense),
        "saved": 1.0 - exchange / dense if dense else None,
        "exposed_s": exposed,
        "hidden_s": hidden,
        "exposed_share": exposed / step if step else 0.0,
    }


def dense_bytes(reducer: GradientReducer) -> int:
    """Bytes that this rank would send between nodes in a step if its part of the gradients went in float32, by all-reduces."""
    buckets = (bucket for bucket in reducer.buckets if bucket.route.between.size > 1)
    return sum(ring_bytes("all_reduce", FLOAT32 * bucket.own.numel(), bucket.route.between.size) for bucket in buckets)


def announcement(parts: Core) -> str:
    """The nodes and how gradients travel between them, in a line; empty where all ranks are on one node."""
    nodes = parts.world.nodes
    if len(set(nodes)) < 2:
        return ""
    ranks = [[rank for rank, node in enumerate(nodes) if node == wanted] for wanted in dict.fromkeys(nodes)]
    sizes = {len(group) for group in ranks}
    each = f" of {min(sizes)} rank{'' if sizes == {1} else 's'}" if len(sizes) == 1 else ""
    named = list(map(_ranges, ranks))
    if len(named) > NAMED_NODES:
        named[NAMED_NODES - 1 : -1] = ["…"]
    how = f"gradients between them: {parts.reducer.between}" if parts.layout.node > 1 else "no sum of gradients is made node by node in this layout"
    return f"{len(ranks)} nodes{each} ({', '.join(named)}); {how}"


def _ranges(ranks: list[int]) -> str:
    """Ascending numbers as ranges: 0-2+5."""
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(ranks), lambda place: place[1] - place[0])]
    return "+".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
