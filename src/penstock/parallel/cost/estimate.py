"""What a layout will cost: bytes sent for every purpose in one optimizer step, computed from shapes before anything runs.

The lines follow a step: for every micro-batch the tensor grid (`traffic_grid.py`, `traffic_tesseract.py`), context, experts and FSDP's gathers and
sums; once the sums of gradients over replicas. Counted as the meter counts, so that estimate and run can be held against each other to the
byte. What depends on the run is its expectation: experts' rows under even routing on evenly cut experts, Muon's matrices dealt evenly. Nothing is
said of the engine's own small agreements (`world.*`: loss, gradient norm, expert loads), some hundred bytes a step.

    FSDP, P weights in a group over s ranks, padded: gathers 2 m P (s - 1)/s in degree 3 (m for the group of embedding, norm and head, which
    stays from forward to backward), P (s - 1)/s in 1 and 2; sums m P (s - 1)/s in 2 and 3, P (s - 1)/s in 1
    replicas: 2 G (r - 1)/r for the gradients G that r ranks share, bucket by bucket
    pipeline: b t d c for each micro-batch and each border of the rank's stages with another rank's (activations one way, gradients the other)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from penstock.comm import Axis
from penstock.comm.gradients.bucket import Route, cut_buckets, rows_of
from penstock.config import ModelSection
from penstock.models import Decoder
from penstock.models.decoder import has_experts
from penstock.parallel.cost.traffic import DOCUMENT_BYTES, EXPERT_COUNT_BYTES, Collective, Workload, axis_name, both_ways
from penstock.parallel.cost.traffic_between import between_traffic
from penstock.parallel.cost.traffic_grid import expected_rows, grid_embedding, grid_head, grid_layer, local_heads
from penstock.parallel.cost.traffic_tesseract import tesseract_embedding, tesseract_head, tesseract_layer
from penstock.parallel.layout import Layout
from penstock.parallel.matrices import sharing_axes
from penstock.parallel.pipeline.stages import Stages
from penstock.parallel.placement import Placement, part
from penstock.parallel.plan import plan_weights


def step_traffic(work: Workload) -> list[Collective]:
    """Every collective of one optimizer step of `work`."""
    lines = [line for layer in work.layers for line in layer_traffic(work, layer)] + ends_traffic(work)
    lines.append(Collective(("pipeline",), "activations", "send", work.stream_bytes, work.hops))
    return [line.repeated(work.micro_batches) for line in lines] + shard_traffic(work) + gradient_traffic(work)


def block_traffic(work: Workload, layer: int) -> list[Collective]:
    """Every collective of block `layer` in one step, its weights' gathers and its gradients' sums included."""
    block = f"blocks.{layer}."
    lines = [line.repeated(work.micro_batches) for line in layer_traffic(work, layer)]
    return lines + shard_traffic(work, block) + gradient_traffic(work, block)


def layer_traffic(work: Workload, layer: int) -> list[Collective]:
    """What block `layer` sends in one micro-batch but for its weights and gradients, forward and backward."""
    grid = tesseract_layer if work.layout.topology == "2.5d" else grid_layer
    lines = grid(work, layer) if work.layout.tensor > 1 else []
    routed = _expert_exchange(work) if has_experts(work.model, layer) else []
    return [*lines, *_context_exchange(work), *routed]


def ends_traffic(work: Workload) -> list[Collective]:
    """What lies before the first block and after the last sends in one micro-batch, but for weights and gradients."""
    square, lines = work.layout.topology == "2.5d", []
    if work.layout.tensor > 1:
        lines += (tesseract_embedding if square else grid_embedding)(work) if work.embeds else []
        lines += (tesseract_head if square else grid_head)(work) if work.ends else []
    if work.documents:  # every stage gathers them
        lines.append(Collective(("context",), "documents", "all_gather", work.micro * work.model.context * DOCUMENT_BYTES, len(work.own_stages)))
    return lines


def shard_traffic(work: Workload, prefix: str = "") -> list[Collective]:
    """FSDP's gathers of weights and sums of gradients in a whole step, of the groups whose names begin with `prefix`.

    With several stages on a rank FSDP, which fetches blocks ahead in the order it saw last, gathers some per cent more in degree 3.
    """
    zero, batches, lines = work.layout.zero, work.micro_batches, []
    each = zero > 1 and work.stages is None  # a pipeline's gradients travel once in every degree
    for group in (group for group in shard_groups(work) if group.name.startswith(prefix)):
        numel, gathers = group.padded_numel(work), (2 if group.regathers else 1) * batches if zero == 3 else 1
        lines.append(Collective(group.axes, "weights", "all_gather", numel * group.width(work), gathers))
        lines.append(Collective(group.axes, "gradients", "reduce_scatter", numel * work.master, batches if each else 1))
    return lines


def gradient_traffic(work: Workload, prefix: str = "") -> list[Collective]:
    """The sums of gradients over replicas at the end of a step, in the reducer's own buckets; of parameters whose names begin with `prefix`."""
    layout, dtype = work.layout, torch.float64 if work.master == 8 else torch.float32
    pairs, axes_of, recut = [], {}, {}
    nodes = layout.group(work.rank, ("node",))
    for placement in (placement for name, placement in placements(work).items() if name.startswith(prefix) and placement.held_by(layout, work.rank)):
        axes, tied = placement.replicas(layout), max(1, len(placement.holders))
        ranks = placement.replica_ranks(layout, work.rank)
        route = Route(Axis(axis_name(axes, layout, tied), ranks))
        if "node" in axes:
            axes = tuple(axis for axis in axes if axis != "node")
            here = layout.coordinate(work.rank, "node")
            inside = tuple(r for r in ranks if layout.coordinate(r, "node") == here)
            route = Route(Axis(axis_name(axes, layout, tied), inside), Axis("node", nodes))
        axes_of[route.inside.name] = (axes, tied)
        pairs.append((nn.Parameter(torch.empty(placement.local_shape(layout, work.rank), device="meta", dtype=dtype)), route))
        recut[pairs[-1][0]] = placement.cuttable
    lines = []
    for bucket, route in cut_buckets([(p, route) for p, route in pairs if route.size > 1], int(work.bucket_mb * 2**20)):
        lines += _sum_of(bucket, route, *axes_of[route.inside.name], work, recut)
    return lines


def _sum_of(
    bucket: list[nn.Parameter], route: Route, axes: tuple[str, ...], tied: int, work: Workload, recut: dict[nn.Parameter, bool]
) -> list[Collective]:
    """The collectives of a bucket's sum: one, or inside the node, between nodes, inside again; `recut` says which any layout can cut anew."""
    if route.between.size == 1:
        return [Collective(axes, "gradients", "all_reduce", sum(p.numel() for p in bucket) * work.master, tied=tied)]
    shapes = [rows_of(p, route.inside.size) for p in bucket]
    own = sum(math.prod(shape) for shape in shapes) * work.master
    between = between_traffic(shapes, [recut[p] for p in bucket], route.between.size, work.master, work.exchange)
    if route.inside.size == 1:
        return between
    scatter, gather = (
        Collective(axes, "gradients", operation, own * route.inside.size, tied=tied) for operation in ("reduce_scatter", "all_gather")
    )
    return [scatter, *between, gather]


def muon_traffic(work: Workload, matrices: Iterable[str]) -> list[Collective]:
    """Muon's exchange of the named matrices of which ranks hold parts (`matrices.py`): there and back, if they are dealt to all ranks alike."""
    layout, plan, lines = work.layout, placements(work), []
    for placement in (plan[name] for name in matrices):
        axes = sharing_axes(placement, layout)
        ranks, held = layout.size(*axes), math.prod(placement.local_shape(layout, work.rank)) * work.master
        lines.append(Collective(axes, "muon", "all_to_all", held * (ranks - 1) // ranks, 2))
    return lines


@dataclass(frozen=True)
class ShardGroup:
    """Parameters below the module `name` that FSDP gathers together, over `axes`; `regathers`: in degree 3 again for the backward pass."""

    name: str
    axes: tuple[str, ...]
    parameters: tuple[Placement, ...]
    regathers: bool

    def width(self, work: Workload) -> int:
        """Bytes of a gathered number: blocks travel in the format of the activations, the rest in the weights' own."""
        return work.compute if self.regathers else work.master

    def padded_numel(self, work: Workload) -> int:
        """Elements of the gathered group on this rank, with the padding FSDP2 gives shards of a dim that does not divide."""
        return sum(self._padded(placement, work) for placement in self.parameters)

    def _padded(self, placement: Placement, work: Workload) -> int:
        """Of one parameter: its cut dim rounded up to a multiple of the ranks."""
        shape = list(grid_shape(placement, work))
        dim, ranks = placement.splits[-1].dim, work.layout.size(*self.axes)
        shape[dim] = -(-shape[dim] // ranks) * ranks
        return math.prod(shape)


def shard_groups(work: Workload) -> list[ShardGroup]:
    """The groups of `parallel/shard.py`, in the order of the blocks; none without a shard axis."""
    layout, plan = work.layout, placements(work)
    if not layout.sharded:
        return []
    groups = []
    for layer in work.layers:
        name = f"blocks.{layer}."
        block = {key: placement for key, placement in plan.items() if key.startswith(name) and _sharded(placement, layout)}
        experts = tuple(placement for key, placement in block.items() if ".experts." in key)
        if experts and layout.expert_shard > 1:
            groups.append(ShardGroup(f"{name}ffn.experts.", layout.expert_shard_axes, experts, True))
        groups.append(ShardGroup(name, layout.shard_axes, tuple(p for key, p in block.items() if ".experts." not in key), True))
    rest = tuple(placement for key, placement in plan.items() if not key.startswith("blocks.") and placement.held_by(layout, work.rank))
    return [*groups, ShardGroup("", layout.shard_axes, rest, False)]


def _sharded(placement: Placement, layout: Layout) -> bool:
    return any(split.axes in (layout.shard_axes, layout.expert_shard_axes) for split in placement.splits)


def placements(work: Workload) -> dict[str, Placement]:
    """Placement of every parameter by logical name, in the order of the model."""
    return _plan(work.model, work.layout, work.stages)


@lru_cache(maxsize=64)
def _plan(model: ModelSection, layout: Layout, stages: Stages | None) -> dict[str, Placement]:
    return plan_weights(model, layout, parameter_shapes(model), stages=stages)


@lru_cache(maxsize=8)
def parameter_shapes(model: ModelSection) -> dict[str, tuple[int, ...]]:
    """Full shape of every parameter of the resolved `model` by name, tied ones once."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Decoder(model).named_parameters()}


def grid_shape(placement: Placement, work: Workload) -> tuple[int, ...]:
    """Shape of a parameter on this rank with FSDP's cut gathered."""
    layout = work.layout
    return placement.without(layout.shard_axes, layout.expert_shard_axes).local_shape(layout, work.rank)


def _context_exchange(work: Workload) -> list[Collective]:
    """Keys and values of the whole sequence, gathered for every layer's attention."""
    model = work.model
    square = work.layout.topology == "2.5d"
    heads = work.part(model.kv_heads, "column") if square else local_heads(work)[1]
    return both_ways("context", "attention", "all_gather", 2 * work.micro * model.context * heads * model.head_dim * work.compute)


def _expert_exchange(work: Workload) -> list[Collective]:
    """Rows that leave for their experts and results that leave for their tokens, under even routing, and the counts that announce them."""
    layout, experts = work.layout, work.model.moe.experts
    _, held = part(experts, layout.expert, layout.index(work.rank, ("expert",)))
    row_bytes = work.part(work.model.dim, "column") * work.compute
    away = work.routed_rows * (experts - held) // experts
    back = expected_rows(work) - expected_rows(work) // layout.expert
    counts = Collective(("expert",), "expert_counts", "all_gather", layout.expert * experts * EXPERT_COUNT_BYTES)
    return [counts, *(Collective(("expert",), "experts", "all_to_all", rows * row_bytes, 2) for rows in (away, back))]
