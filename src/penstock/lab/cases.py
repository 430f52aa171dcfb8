"""The cases of the equivalence matrix: which layouts are held against one plain process, and with which switches.

Every axis alone (the shard axis in its three degrees, the tensor axis in its topologies, the pipeline with every kind of schedule, sizes 2 and 3),
every pair of axes (every kind of schedule with every axis), and the triples and quadruples that fit; each with a training set-up from a rotating
list, so that accumulation, clipping, tied embeddings, packing, averaging and both optimizers meet every kind of layout. A case that a model cannot
be laid out in stays in the list: its refusal is part of the answer.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

#: Kinds of schedule; auto is what users get.
SCHEDULES = ("auto", "zb-v", "1f1b", "interleaved", "zb-h1", "v-half", "interleaved-zb", "dualpipe-v", "v-min", "gpipe")

#: One way of using each axis: the ranks it takes and the settings it makes.
AXES: dict[str, tuple[dict[str, Any], ...]] = {
    "pipeline": (
        *({"layout.pipeline": 2, "pipeline.schedule": kind, "model.layers": 5, "batch.micro": 3} for kind in SCHEDULES),
        {"layout.pipeline": 3, "pipeline.schedule": "interleaved", "model.layers": 7, "batch.micro": 4},
        {"layout.pipeline": 4, "pipeline.schedule": "auto", "model.layers": 9, "batch.micro": 2},
        {"layout.pipeline": 8, "pipeline.schedule": "zb-h1", "model.layers": 8, "batch.micro": 3},
        {"layout.pipeline": 2, "pipeline.schedule": "zb-v", "model.layers": 5, "batch.micro": 3, "pipeline.check": "after"},
    ),
    "replicate": ({"layout.replicate": 2}, {"layout.replicate": 3}, {"layout.replicate": 2, "balance.data": "measured"}),
    # two nodes for every rank of the pipeline, with the ranks that the case makes
    "nodes": ({"layout.replicate": 2, "exchange.topology": "auto"}, {"layout.replicate": 4, "exchange.topology": "auto"}),
    "shard": (
        {"layout.shard": 2, "layout.zero": 3},
        {"layout.shard": 2, "layout.zero": 2},
        {"layout.shard": 2, "layout.zero": 1},
        {"layout.shard": 3, "layout.zero": 3},
    ),
    "context": ({"layout.context": 2}, {"layout.context": 4}),
    "tensor": ({"layout.tensor": 2}, {"layout.tensor": 3}, {"layout.tensor": 4}),
    "tensor 2d": tuple(
        {"layout.tensor": math.prod(grid), "layout.tensor_topology": "2d", "layout.tensor_grid": f"{grid[0]}x{grid[1]}"}
        for grid in ((2, 1), (2, 2), (2, 3), (4, 2))
    ),
    "tensor 2.5d": tuple(
        {"layout.tensor": math.prod(grid), "layout.tensor_topology": "2.5d", "layout.tensor_grid": "x".join(map(str, grid))}
        for grid in ((2, 2, 1), (2, 2, 2))
    ),
    "expert": ({"layout.expert": 2}, {"layout.expert": 4}, {"layout.expert": 2, "layout.expert_spare": 1, "layout.expert_every": 3}),
}
TOPOLOGIES = ("tensor", "tensor 2d", "tensor 2.5d")

#: Training set-ups that take turns; the first is the config's own.
SETUPS: tuple[dict[str, Any], ...] = (
    {},
    {"batch.micro": 4},
    {"model.tie_embeddings": True, "optim.clip": 0.1},
    {"data.document_mask": True, "batch.micro": 3},
    {"optim.kind": "muon"},
    {"optim.kind": "adamw", "optim.clip": 0.0, "model.qk_norm": True},
)


@dataclass(frozen=True)
class Case:
    """A layout on so many ranks, and the settings that make it."""

    name: str
    ranks: int
    settings: dict[str, Any]


def layout_cases(most_ranks: int, experts: bool) -> list[Case]:
    """All cases that take at most `most_ranks` ranks; without `experts` in the model none uses the expert axis but as one refused."""
    found: dict[str, Case] = {}
    kinds = itertools.cycle(range(len(SCHEDULES)))
    for count in range(1, 5):
        for axes in itertools.combinations(AXES, count):
            if sum(axis in TOPOLOGIES for axis in axes) > 1 or ("expert" in axes and not experts and count > 1):
                continue
            if "nodes" in axes and ("replicate" in axes or count > 2):
                continue
            for case in _combined(axes, most_ranks, next(kinds) if "pipeline" in axes else 0):
                found.setdefault(case.name, case)
    return [Case(c.name, c.ranks, c.settings | SETUPS[i % len(SETUPS)]) for i, c in enumerate(found.values())]


def _combined(axes: tuple[str, ...], most_ranks: int, kind: int) -> list[Case]:
    """Ways of using several axes together: all sizes of one or two axes, the smallest of more, then with the schedule `kind`.

    A pipeline meets the first way of each other axis with every schedule, and the others with one.
    """
    choices = [AXES[axis] if len(axes) < 3 else AXES[axis][:1] for axis in axes]
    if "pipeline" in axes and len(axes) > 2:
        choices[0] = AXES["pipeline"][kind : kind + 1]
    cases = []
    for ways in itertools.product(*choices):
        if len(axes) == 2 and axes[0] == "pipeline" and ways[0] is not choices[0][kind] and ways[1] is not choices[1][0]:
            continue
        settings = {key: value for way in ways for key, value in way.items()}
        expert = settings.get("layout.expert", 1)
        data = math.prod(settings.get(f"layout.{axis}", 1) for axis in ("replicate", "shard", "context"))
        if data % expert and expert % data == 0 and "replicate" not in axes:
            settings["layout.replicate"] = expert // data  # experts need data-parallel ranks to live on
            data = expert
        ranks = data * settings.get("layout.tensor", 1) * settings.get("layout.pipeline", 1)
        if "exchange.topology" in settings:
            nodes = 2 * settings.get("layout.pipeline", 1)
            settings["exchange.topology"] = f"{nodes}x{ranks // nodes}"
        if ranks <= most_ranks and data % expert == 0:
            cases.append(Case(_name(settings), ranks, settings))
    return cases


def _name(settings: dict[str, Any]) -> str:
    values = {key.removeprefix("layout."): value for key, value in settings.items()}
    parts = [f"{axis} {values[axis]}" for axis in ("pipeline", "replicate", "shard", "context", "expert") if values.get(axis, 1) > 1]
    if "pipeline" in values:
        parts[0] += f" {settings['pipeline.schedule']}" + " checked after" * (settings.get("pipeline.check") == "after")
    if "balance.data" in settings:
        parts[parts.index(f"replicate {values['replicate']}")] += " measured shares"
    if "shard" in values:
        parts[parts.index(f"shard {values['shard']}")] += f" zero {values['zero']}"
    if "exchange.topology" in settings:
        place = parts.index(f"replicate {values['replicate']}")
        parts[place] += f" on nodes of {settings['exchange.topology'].partition('x')[2]}"
    if "expert_every" in values:
        parts[-1] += " moving"
    if "tensor" in values:
        parts.append(f"tensor {values.get('tensor_grid', values['tensor'])} {values.get('tensor_topology', '1d')}")
    return ", ".join(parts)
