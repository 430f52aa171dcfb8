"""What experts placed by hand ask of weights and moments: replicas that stay equal, and the way from old slots to new ones.

Two slots that hold the same expert have seen different rows. `sync_replicas` gives both the sum of their gradients, so that equal weights and
moments stay equal, bit for bit, under any optimizer. `move_experts` sends weights and moments from slots to slots when the load has moved
(`balance.py`), each expert once to a place that lacks it, from one that has it, and never through the full tensor.

Cost: an all-reduce of the replicated experts' gradients a step; for a move, at most the new slots' bytes over the expert axis and one tensor's old
and new slots in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from penstock.comm import Axis
from penstock.parallel.experts.balance import Slots, even_slots
from penstock.parallel.mesh import Mesh
from penstock.parallel.placement import Placement


@torch.no_grad()
def sync_replicas(locals_: Mapping[str, Tensor], placements: Mapping[str, Placement], mesh: Mesh) -> None:
    """Give all slots of an expert the sum of their gradients, the same bits in each, by one all-reduce over the expert axis for all tensors.

    `locals_` are this rank's plain tensors, all of one format, with their `.grad` (None: zero); `placements`, theirs by name, say which slots
    agree, and tensors without such slots are passed over. All ranks must call it, with the same names in the same order.
    """
    here = {name: placement for name, placement in placements.items() if placement.held_by(mesh.layout, mesh.world.rank)}
    shared = {name: hot for name, placement in here.items() if (hot := _replicated(placement.slots))}
    if not shared:
        return
    shapes = [(len(hot), *locals_[name].shape[1:]) for name, hot in shared.items()]
    like = locals_[next(iter(shared))]
    flat = like.new_zeros(sum(torch.Size(shape).numel() for shape in shapes))
    sums = [part.view(shape) for part, shape in zip(flat.split([torch.Size(shape).numel() for shape in shapes]), shapes)]
    axis = mesh.axis("expert")
    for name, sum_h in zip(shared, sums):
        if (grad := locals_[name].grad) is None:
            grad = locals_[name].grad = torch.zeros_like(locals_[name])
        for row, slot in _pairs(shared[name], placements[name].slots[axis.index]):
            sum_h[row].add_(grad[slot])
    axis.all_reduce(flat, "expert_replicas")
    for name, sum_h in zip(shared, sums):
        grad = locals_[name].grad
        assert grad is not None
        for row, slot in _pairs(shared[name], placements[name].slots[axis.index]):
            grad[slot].copy_(sum_h[row])


@torch.no_grad()
def move_experts(tensors: Mapping[str, Tensor], old: Mapping[str, Placement], new: Mapping[str, Placement], mesh: Mesh) -> dict[str, Tensor]:
    """The rank's tensors (weights, or moments placed like them) as `new` places them, from where `old` does, with the same bits.

    The two placements of a name may differ in `slots` only, where none means the even cut. Tensors whose slots stay are passed on as they
    are, others are new. All ranks must call it, with the same names in the same order.
    """
    axis = mesh.axis("expert")
    moved = {}
    for name, tensor in tensors.items():
        before, after = (_slots(placement, axis.size) for placement in (old[name], new[name]))
        moved[name] = tensor if before == after else _move(tensor, before, after, axis)
    return moved


def _move(tensor: Tensor, before: Slots, after: Slots, axis: Axis) -> Tensor:
    """Every place sends, ordered by receiver, the experts that it is the source of, and picks its new slots from its own and what came."""
    me, places = axis.index, range(axis.size)
    send = [_travelling(me, to, before, after) for to in places]
    come = [_travelling(source, me, before, after) for source in places]
    rows = tensor[[before[me].index(expert) for experts in send for expert in experts]]
    came = axis.all_to_all(rows, [len(experts) for experts in send], [len(experts) for experts in come], "move_experts")
    here = [*before[me], *(expert for experts in come for expert in experts)]
    return torch.cat([tensor, came])[[here.index(expert) for expert in after[me]]]


def _travelling(source: int, to: int, before: Slots, after: Slots) -> list[int]:
    """Experts that place `to` lacks and gets from `source`: of the places that have one, those in need take different ones."""
    missing = sorted(set(after[to]) - set(before[to]))
    holders = {expert: [place for place, held in enumerate(before) if expert in held] for expert in missing}
    return [expert for expert in missing if holders[expert][to % len(holders[expert])] == source]


def _slots(placement: Placement, places: int) -> Slots:
    if placement.slots or not any("expert" in split.axes for split in placement.splits):
        return placement.slots
    return even_slots(placement.shape[0], places)


def _replicated(slots: Slots) -> list[int]:
    """Experts that have more than one slot."""
    flat = [expert for place in slots for expert in place]
    return sorted(expert for expert in set(flat) if flat.count(expert) > 1)


def _pairs(hot: list[int], mine: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Row of the sums and local slot, for each of this place's slots whose expert is replicated."""
    return ((hot.index(expert), slot) for slot, expert in enumerate(mine) if expert in hot)
