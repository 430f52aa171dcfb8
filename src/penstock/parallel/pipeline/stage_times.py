"""From pieces to stages and back: what the parts of a split cost, and what measured stages say of the pieces.

Stages from pieces is a sum. Pieces from stages is a guess, since a stage that takes long may hold costly layers or live on a slow rank. The rule:

1. Layers keep their estimated ratios; a unit of estimate takes, for each of the three works, the *median* over stages of measured time / estimate.
   Stages with the embedding or head count only where there are no others. So one slow rank among several moves nothing.
2. A rank's slowness is the measured time of its stages without ends over what the layers say. Where it has no such stage it is 1, or less if one
   of the works takes less, even with an end, than that of the layers alone should.
3. Embedding and head take what is left of their stages' measured time, at that slowness, and not less than nothing.

With one stage a rank the first and last rank have no stage without ends: a slow one shows as a costly embedding or head, which moves layers off it
just the same, a few too few; the next measurement corrects that. Cost: none to speak of. When not to use: before caches and clocks are warm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from penstock.parallel.pipeline.layer_costs import Cost, LayerCosts
from penstock.parallel.pipeline.schedule import Costs
from penstock.parallel.pipeline.stages import Part


@dataclass(frozen=True)
class Measured:
    """Pieces' costs in measured time on a rank of the usual speed, and how many times longer each rank takes."""

    costs: LayerCosts
    slowness: tuple[float, ...]


def stage_costs(
    parts: Sequence[Part],
    costs: LayerCosts,
    transfer: float | Sequence[float],
    rank_of: Sequence[int] | None = None,
    slowness: Sequence[float] | None = None,
) -> Costs:
    """The schedule's `Costs` of such parts, in the unit of `costs`; `transfer` of one hop, or of each.

    Activations become the schedule's unit of memory, an even rank's share of all that a micro-batch keeps; zeros if nothing is known of them.
    """
    ranks = tuple(range(len(parts))) if rank_of is None else tuple(rank_of)
    slow = [1.0] * len(parts) if slowness is None else [slowness[rank] for rank in ranks]
    stages = [part_cost(part, costs) for part in parts]
    unit = sum(stage.kept for stage in stages) / (max(ranks) + 1)
    hops = tuple(transfer) if isinstance(transfer, Sequence) else (float(transfer),) * (len(parts) - 1)
    forward, input_grad, weight_grad = (tuple(factor * stage[work] for factor, stage in zip(slow, stages)) for work in range(3))
    return Costs(forward, input_grad, weight_grad, hops, tuple(stage.kept / unit if unit else 0.0 for stage in stages))


def part_cost(part: Part, costs: LayerCosts) -> Cost:
    """The sum of a part's pieces."""
    pieces = [costs.layers[layer] for layer in part.layers] + [costs.embedding] * part.embedding + [costs.head] * part.head
    return Cost._make(map(sum, zip(Cost(0.0, 0.0, 0.0), *pieces)))


def measured_layer_costs(parts: Sequence[Part], measured: Costs, estimate: LayerCosts, rank_of: Sequence[int] | None = None) -> Measured:
    """Costs of the pieces from measured times of the stages that `parts` are, by the rule above; bytes stay those of `estimate`."""
    ranks = tuple(range(len(parts))) if rank_of is None else tuple(rank_of)
    works = tuple(zip(measured.forward, measured.input_grad, measured.weight_grad))
    units = [_unit(parts, [times[work] for times in works], estimate, work) for work in range(3)]
    layers = tuple(_scaled(layer, units) for layer in estimate.layers)
    bare = LayerCosts(layers, Cost(0.0, 0.0, 0.0), Cost(0.0, 0.0, 0.0))
    said = [part_cost(part, bare)[:3] for part in parts]
    slowness = tuple(_slowness(parts, works, said, [stage for stage, r in enumerate(ranks) if r == rank]) for rank in range(max(ranks) + 1))
    ends = []
    for stage, piece in ((0, estimate.embedding), (len(parts) - 1, estimate.head)):
        layers_here = part_cost(parts[stage], bare)
        f, i, w = (max(0.0, works[stage][work] / slowness[ranks[stage]] - layers_here[work]) for work in range(3))
        ends.append(Cost(f, i, w, piece.state, piece.kept))
    return Measured(LayerCosts(layers, *_shared(parts, ends, estimate)), slowness)


def _unit(parts: Sequence[Part], times: list[float], estimate: LayerCosts, work: int) -> float:
    """Measured time of one work for one unit of its estimate, in layers."""
    inner = [stage for stage, part in enumerate(parts) if not (part.embedding or part.head)]
    ratios = []
    for stage in inner or range(len(parts)):
        expected = sum(estimate.layers[layer][work] for layer in parts[stage].layers)
        if not inner:  # the ends' share by their estimate
            expected += parts[stage].embedding * estimate.embedding[work] + parts[stage].head * estimate.head[work]
        if expected:
            ratios.append(times[stage] / expected)
    return median(ratios) if ratios else 0.0


def _scaled(layer: Cost, units: list[float]) -> Cost:
    forward, input_grad, weight_grad = (layer[work] * units[work] for work in range(3))
    return Cost(forward, input_grad, weight_grad, layer.state, layer.kept)


def _slowness(parts: Sequence[Part], measured: Sequence[Sequence[float]], said: Sequence[Sequence[float]], own: list[int]) -> float:
    """Measured times of the rank that has the stages `own`, over what is said of its layers."""
    inner = [stage for stage in own if not (parts[stage].embedding or parts[stage].head)]
    if expected := sum(sum(said[stage]) for stage in inner):
        return sum(sum(measured[stage]) for stage in inner) / expected
    return min([1.0, *(took / says for stage in own for took, says in zip(measured[stage], said[stage]) if says)])


def _shared(parts: Sequence[Part], ends: list[Cost], estimate: LayerCosts) -> list[Cost]:
    """Embedding and head of a model in one stage divide what is left by their estimates; of several, each has its own."""
    if len(parts) > 1:
        return ends
    both = [estimate.embedding, estimate.head]
    total = [sum(piece[work] for piece in both) for work in range(3)]
    return [_scaled(piece, [ends[0][work] / total[work] if total[work] else 0.0 for work in range(3)]) for piece in both]
