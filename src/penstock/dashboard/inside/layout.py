"""Where ranks lie: the mesh's axes with their sizes, each rank's place on them, its host and stages, and how long it works a step of its own.

A rank's number is its place on all axes, outermost first (`parallel/layout.py` says what they are and why in this order):

    pipeline · node · replicate · shard · context · depth · row · column

Cost: some ms, and a small file of each of `MOST_HOSTS` ranks. When not to use it: to decide anything; the engine's own layout does that.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from penstock.dashboard.events import Layout
from penstock.dashboard.inside.ranks import Known, newest
from penstock.dashboard.inside.timeline import hosts_told, plan_told

ORDER = ("pipeline", "node", "replicate", "shard", "context", "depth", "row", "column")
#: What ranks along an axis have of each other's.
MEANINGS = {
    "pipeline": "other layers", "node": "the same weights on another node, other data", "replicate": "the same weights, other data",
    "shard": "another shard of the same weights, other data", "context": "another part of the same sequences",
    "depth": "another layer of the tensor grid", "row": "another row of each matrix's grid", "column": "another column of each matrix",
    "expert": "other experts",
}  # fmt: skip
#: Ranks that are drawn, and whose hosts are looked for, at most.
MOST_RANKS, MOST_HOSTS = 4096, 512


def layout_told(metrics: Path, layout: Layout | None, known: Known) -> dict[str, Any]:
    """The layout of a run whose newest event told `layout`, with its grid."""
    axes = axes_of(layout)
    ranks = (layout["ranks"] if layout and layout["ranks"] else known.grid.ranks_of) or 0
    if math.prod(size for _, size in axes) != ranks:
        axes = [("rank", ranks)] if ranks else []
    drawn = min(ranks, MOST_RANKS)
    own, step = newest(known.grid, "time/own")
    plan = plan_told(metrics)
    return {
        "axes": [{"name": name, "size": size, "meaning": MEANINGS.get(name, "")} for name, size in axes], "ranks": ranks, "drawn": drawn,
        "experts": layout["axes"].get("expert", 1) if layout else 1, "text": layout["text"] if layout else "",
        "hosts": hosts_told(metrics, min(drawn, MOST_HOSTS)), "own": own[:drawn], "step": step, "stages": plan["stages"] if plan else [],
    }  # fmt: skip


def axes_of(layout: Layout | None) -> list[tuple[str, int]]:
    """Axes that more than one rank lies along, outermost first, with their sizes."""
    sizes = dict(layout["axes"]) if layout else {}
    node = max(1, sizes.get("node", 1))
    sizes["replicate"] = sizes.get("replicate", 1) // node  # it is told over all nodes
    if not any(axis in sizes for axis in ("depth", "row", "column")):
        sizes["column"] = sizes.get("tensor", 1)
    return [(axis, size) for axis in ORDER if (size := sizes.get(axis, 1)) > 1]
