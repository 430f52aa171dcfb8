"""Memory that a rank will need, piece by piece, from shapes.

    weights, gradients   what the rank holds of them, `master` bytes a number (gradients whole on the grid in ZeRO-1, until the last micro-batch,
                         and in a pipeline with any degree)
    moments              AdamW two and Muon one such number a weight, an average of the weights one more
    gathered             FSDP's whole weights: of two blocks (the next is fetched early) and of embedding, norm and head in ZeRO-3, of all else
    exchange             buckets of the replicas' gradients; a block's whole gradients and their copy in the weights' format while FSDP sums them
    activations, casts   kept from forward to backward by all layers (`parallel/cost/activations.py`), in a pipeline of all micro-batches that are
                         under way on the rank at a time; FSDP's gathered blocks need no casts
    logits               a chunk of the loss

`total` is their sum, an upper estimate: not all are at their most at once. The allocator's waste, workspaces of kernels, and the framework itself
(about 0.5 GB on a GPU) come on top.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from penstock.config import OptimSection
from penstock.optim.optimizer import is_block_matrix
from penstock.parallel.cost.activations import kept_activations, kept_casts, loss_chunk
from penstock.parallel.cost.estimate import gradient_traffic, grid_shape, placements, shard_groups
from penstock.parallel.cost.traffic import Workload
from penstock.parallel.placement import Placement


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank."""

    weights: int
    gradients: int
    moments: int
    gathered: int
    exchange: int
    activations: int
    casts: int
    logits: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())

    def as_dict(self) -> dict[str, int]:
        """The pieces and their sum."""
        return asdict(self) | {"total": self.total}


def footprint(work: Workload, optim: OptimSection) -> Footprint:
    """What the rank of `work` will hold."""
    master, whole_gradients = work.master, work.layout.sharded and (work.layout.zero == 1 or work.stages is not None)
    plan = placements(work)
    held = {name: math.prod(placement.local_shape(work.layout, work.rank)) for name, placement in plan.items()}
    whole = sum(math.prod(grid_shape(placement, work)) for placement in plan.values())
    blocks, gathered = _gathered(work)
    return Footprint(
        weights=sum(held.values()) * master,
        gradients=(whole if whole_gradients else sum(held.values())) * master,
        moments=sum(n * _moments(name, plan[name], optim) for name, n in held.items()) * master,
        gathered=gathered,
        exchange=blocks * (work.compute + master) + sum(line.n_bytes for line in gradient_traffic(work)),
        activations=kept_activations(work),
        casts=0 if work.layout.sharded else kept_casts(work),
        logits=loss_chunk(work) if work.ends else 0,
    )


def _gathered(work: Workload) -> tuple[int, int]:
    """Elements of the largest block that FSDP gathers, and bytes of all that it has gathered at a time."""
    groups = shard_groups(work)
    blocks = sorted((group.padded_numel(work) for group in groups if group.regathers), reverse=True)
    rest = sum(group.padded_numel(work) * group.width(work) for group in groups if not group.regathers)
    at_a_time = blocks[:2] if work.layout.zero == 3 else blocks
    return max(blocks, default=0), rest + sum(at_a_time) * work.compute


def _moments(name: str, placement: Placement, optim: OptimSection) -> int:
    return (1 if uses_muon(name, placement, optim) else 2) + (1 if optim.ema else 0)


def uses_muon(name: str, placement: Placement, optim: OptimSection) -> bool:
    """Whether a parameter is Muon's."""
    return optim.kind == "muon" and is_block_matrix(name, torch.empty(placement.shape, device="meta"))
