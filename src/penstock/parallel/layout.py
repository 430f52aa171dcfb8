"""Which axes the ranks form: the one place that knows the arithmetic of the mesh.

A rank has a coordinate on every axis, outermost first:

    pipeline · node · replicate · shard · context · depth · row · column

`pipeline` ranks hold different layers. `node`, `replicate`, `shard` and `context` are the *data* axes: their ranks read different tokens (context:
different parts of the same sequences). `node` and `replicate` together are the replicas of `layout.replicate`: where those lie on several nodes,
`node` runs over the nodes and `replicate` over the replicas within one, so that gradients cross the slow network once (`comm/gradients`).
`depth · row · column` is the tensor grid, whose ranks share the matrices (`tensor` is their product): 1 × p × 1 for the 1-D topology,
1 × y × x for 2-D, d × q × q for 2.5-D. Experts are spread over consecutive data ranks, so the same ranks have a second description,

    pipeline · node · expert_replicate · expert_shard · expert · depth · row · column

with replicate·shard·context = expert_replicate·expert_shard·expert. A parameter is described in one of the two families.

Ranks are numbered node by node, so inner axes lie inside a node: those that talk most per token (the tensor grid: every layer, twice each way)
are innermost, then experts and context (once or twice a layer), then shard (weights once or twice a step), then replicate (gradients once), then
the pipeline, which sends one activation from rank to rank.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from penstock.config import Config, ConfigError

DATA = ("pipeline", "node", "replicate", "shard", "context")
EXPERT = ("pipeline", "node", "expert_replicate", "expert_shard", "expert")
TENSOR = ("depth", "row", "column")


@dataclass(frozen=True)
class Layout:
    """Sizes of all axes; `zero` is what the shard axis shards: 1 moments, 2 gradients too, 3 weights too (Rajbhandari et al., arXiv 1910.02054)."""

    replicate: int = 1
    shard: int = 1
    context: int = 1
    expert: int = 1
    depth: int = 1
    row: int = 1
    column: int = 1
    topology: str = "1d"
    zero: int = 3
    pipeline: int = 1
    node: int = 1

    @property
    def replicas(self) -> int:
        """Replicas of everything below them, on all nodes: `layout.replicate`."""
        return self.node * self.replicate

    @property
    def tensor(self) -> int:
        """Ranks that share each matrix."""
        return self.depth * self.row * self.column

    @property
    def data(self) -> int:
        """Ranks of one stage that see different data."""
        return self.replicas * self.shard * self.context

    @property
    def ranks(self) -> int:
        """Ranks of the whole mesh."""
        return self.pipeline * self.data * self.tensor

    @property
    def sharded(self) -> bool:
        """Whether weights or their moments are sharded over the shard axis (and the context axis with it)."""
        return self.shard > 1

    @property
    def expert_shard(self) -> int:
        """Ranks over which one expert's weights are sharded beside the expert axis."""
        inner = self.shard * self.context
        return inner // self.expert if self.sharded and inner % self.expert == 0 else 1

    @property
    def expert_replicate(self) -> int:
        """Ranks of a node that hold the same experts, or the same shard of them."""
        return self.data // self.node // (self.expert * self.expert_shard)

    @property
    def shard_axes(self) -> tuple[str, ...]:
        """Axes over which FSDP shards a dense parameter: context ranks hold the same weights, so they share the burden."""
        return ("shard", "context") if self.sharded else ()

    @property
    def expert_shard_axes(self) -> tuple[str, ...]:
        """Axes over which FSDP shards an expert's parameter."""
        return ("expert_shard",) if self.expert_shard > 1 else ()

    @property
    def sequence_axes(self) -> tuple[str, ...]:
        """Axes whose ranks read different sequences; in 2.5-D the rows and the depth of the grid too."""
        replicas = ("node", "replicate", "shard")
        return (*replicas, "depth", "row") if self.topology == "2.5d" else replicas

    @property
    def token_axes(self) -> tuple[str, ...]:
        """Axes whose ranks compute the loss of different tokens."""
        return (*self.sequence_axes, "context")

    def size(self, *axes: str) -> int:
        """Ranks along the named axes together."""
        size = 1
        for axis in axes:  # asked for a thousand times when a model is laid out: twice as quick as a product over a generator
            size *= getattr(self, axis)
        return size

    def stride(self, axis: str) -> int:
        """Distance in ranks between neighbours along the axis."""
        return self._strides[axis]

    @cached_property
    def _strides(self) -> dict[str, int]:
        """Of every axis; kept, as a step asks for some of them for each parameter."""
        inner = {axis: family[place + 1 :] for family in (EXPERT, DATA, TENSOR) for place, axis in enumerate(family)}
        return {axis: self.size(*axes) * (1 if axis in TENSOR else self.tensor) for axis, axes in inner.items()}

    def coordinate(self, rank: int, axis: str) -> int:
        """The rank's place on the axis."""
        return rank // self.stride(axis) % self.size(axis)

    def index(self, rank: int, axes: Sequence[str]) -> int:
        """The rank's place along the named axes taken as one, outermost first as named."""
        place = 0
        for axis in axes:
            place = place * self.size(axis) + self.coordinate(rank, axis)
        return place

    def group(self, rank: int, axes: Sequence[str]) -> tuple[int, ...]:
        """Ranks that differ from `rank` on the named axes only, in the order of their places on those."""
        origin = rank - sum(self.coordinate(rank, axis) * self.stride(axis) for axis in axes)
        steps = [[place * self.stride(axis) for place in range(self.size(axis))] for axis in axes]
        return tuple(origin + sum(way) for way in itertools.product(*steps))

    def complement(self, axes: Sequence[str]) -> tuple[str, ...]:
        """The axes that are not named, of the description that the named ones belong to, outermost first."""
        family = (EXPERT if set(axes) & set(EXPERT[1:]) else DATA) + TENSOR
        return tuple(axis for axis in family if axis not in axes)

    def as_dict(self) -> dict[str, Any]:
        """As printed by `penstock layout --json`."""
        derived = ("tensor", "ranks", "expert_shard", "expert_replicate")
        return asdict(self) | {"replicate": self.replicas} | {name: getattr(self, name) for name in derived}

    def __str__(self) -> str:
        names = {"pipeline": self.pipeline, "replicate": self.replicas, "shard": self.shard, "context": self.context, "expert": self.expert}
        parts = [f"{name} {size}" for name, size in names.items() if size > 1]
        if self.sharded:
            parts[parts.index(f"shard {self.shard}")] += f" (zero {self.zero})"
        if self.node > 1:
            parts[parts.index(f"replicate {self.replicas}")] += f" (on {self.node} nodes)"
        if self.tensor > 1:
            shape = {"1d": "", "2d": f", {self.column}x{self.row}", "2.5d": f", {self.row}x{self.column}x{self.depth}"}[self.topology]
            parts.append(f"tensor {self.tensor} ({self.topology}{shape})")
        return " · ".join(parts) or "one rank"


def build_layout(config: Config, ranks: int, nodes: Sequence[int] = ()) -> Layout:
    """The layout that `config.layout` describes on so many ranks; raises `ConfigError` naming what does not multiply.

    `nodes` are the ranks' nodes where they are known; `exchange.topology` may say otherwise.
    """
    section = config.layout
    fixed = section.pipeline * section.shard * section.context * section.tensor
    sizes = {axis: getattr(section, axis) for axis in ("pipeline", "shard", "context", "tensor")}
    said = ", ".join(f"layout.{axis} = {size}" for axis, size in sizes.items() if size > 1 or axis != "pipeline") + " make"
    if ranks % fixed:
        raise ConfigError(f"{said} {fixed} ranks, which does not divide the number of ranks started, {ranks}; start a multiple, or change one")
    replicate = section.replicate or ranks // fixed
    if replicate * fixed != ranks:
        raise ConfigError(
            f"layout.replicate = {replicate}, {said} {replicate * fixed} ranks, which is not the number of ranks started, {ranks}; "
            f"start {replicate * fixed}, or set layout.replicate to 0 or {ranks // fixed}"
        )
    depth, row, column = tensor_grid(section.tensor, section.tensor_topology, section.tensor_grid)
    node = nodes_of_replicas(said_nodes(config, ranks) or nodes, section.pipeline, replicate)
    inner = section.shard * section.context
    if replicate // node * inner % section.expert:
        node = 1  # experts are spread over more than a node's ranks
    layout = Layout(
        replicate // node, section.shard, section.context, section.expert, depth, row, column, section.tensor_topology, section.zero,
        section.pipeline, node,
    )  # fmt: skip
    if inner % section.expert and not (section.expert % inner == 0 and replicate % (section.expert // inner) == 0):
        raise ConfigError(
            f"layout.expert = {section.expert} does not fit into layout.shard × layout.context = {inner} (× layout.replicate = {replicate}): "
            "experts are spread over whole groups of those ranks; let one divide the other"
        )
    return layout


def said_nodes(config: Config, ranks: int) -> tuple[int, ...]:
    """The ranks' nodes that `exchange.topology` gives by hand; empty: it does not. Raises `ConfigError` for another number of ranks."""
    topology = config.exchange.topology
    if topology in ("auto", "measured"):
        return ()
    nodes, on_each = (1, ranks) if topology == "flat" else map(int, topology.split("x"))
    if nodes * on_each != ranks:
        raise ConfigError(
            f"exchange.topology = '{topology}' has {nodes * on_each} ranks, and {ranks} are started; start {nodes * on_each}, or let it be 'auto'"
        )
    return tuple(rank // on_each for rank in range(ranks))


def nodes_of_replicas(nodes: Sequence[int], pipeline: int, replicate: int) -> int:
    """Over how many nodes the replicas of a weight are spread, each node having equally many, one after the other; 1 where that is not so."""
    if len(set(nodes)) < 2:
        return 1
    of_stage, found = len(nodes) // pipeline, set()
    stride = of_stage // replicate
    for start in range(0, len(nodes), of_stage):
        for first in range(start, start + stride):
            runs = [len(list(run)) for _, run in itertools.groupby(nodes[first + place * stride] for place in range(replicate))]
            distinct = len({nodes[first + place * stride] for place in range(replicate)})
            found.add(distinct if runs == [replicate // distinct] * distinct else 1)
    return found.pop() if len(found) == 1 else 1


def micro_batch(config: Config, layout: Layout) -> int:
    """Sequences a rank computes at a time: the largest number up to `batch.micro` that divides its share of the batch."""
    return max(size for size in micro_sizes(config, layout) if size <= config.batch.first_micro)


def micro_sizes(config: Config, layout: Layout) -> list[int]:
    """Numbers of sequences into which a rank's share of the batch divides, ascending."""
    share = config.batch.global_ // layout.size(*layout.sequence_axes)
    return [size for size in range(1, share + 1) if share % size == 0]


def tensor_grid(size: int, topology: str, text: str) -> tuple[int, int, int]:
    """Depth, rows and columns of the tensor grid: read from `x×y` (2-D) or `q×q×d` (2.5-D), or chosen where `text` is empty.

    Chosen: the most square 2-D grid with no more columns than rows; the largest q for 2.5-D. Raises `ConfigError`.
    """
    if topology == "1d":
        if text:
            raise ConfigError(f"layout.tensor_grid = '{text}' has no meaning with layout.tensor_topology = '1d'; empty it, or choose '2d' or '2.5d'")
        return 1, size, 1
    numbers = [int(number) for number in re.split("[x×]", text)] if text else _choose_grid(size, topology)
    if math.prod(numbers) != size:
        raise ConfigError(f"layout.tensor_grid = '{text}' has {math.prod(numbers)} places, and layout.tensor = {size}; they must be equal")
    if topology == "2d":
        if len(numbers) != 2:
            raise ConfigError(f"layout.tensor_grid = '{text}' must be two numbers, x×y, with layout.tensor_topology = '2d'")
        return 1, numbers[1], numbers[0]
    if len(numbers) != 3 or numbers[0] != numbers[1]:
        raise ConfigError(f"layout.tensor_grid = '{text}' must be q×q×depth, such as 2x2x1, with layout.tensor_topology = '2.5d'")
    return numbers[2], numbers[0], numbers[1]


def _choose_grid(size: int, topology: str) -> list[int]:
    if topology == "2d":
        x = max(x for x in range(1, math.isqrt(size) + 1) if size % x == 0)
        return [x, size // x]
    q = max(q for q in range(1, math.isqrt(size) + 1) if size % (q * q) == 0)
    if q == 1 and size > 1:
        raise ConfigError(f"layout.tensor = {size} is no q × q × depth with q above 1, as layout.tensor_topology = '2.5d' needs; use 4, 8, 9, 16, …")
    return [q, q, size // (q * q)]

