"""Experts that move to where there is room: spare slots for hot experts, placed anew from the load of the last steps.

With `layout.expert_spare` every expert rank has so many slots more than its even share, which hold further replicas of the busiest experts. Every
`layout.expert_every` steps the tokens that each expert of each layer got since the last time decide the placement of the next
(`parallel/experts/balance.py`), and weights, moments and averages travel to their new slots (`parallel/experts/slots.py`), bit for bit. All ranks see
the same loads, so all find the same placement. The placement is part of a run's state: a resumed run goes on with it.

Cost: an all-reduce of the replicated experts' gradients each step; at a move the new slots' bytes. When not to use it: with routers that
balance well by themselves the gain is smaller than the exchange of the replicas' gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from penstock.config import Config
from penstock.parallel import Laid, Layout, Slots, balanced_slots, move_experts, plan_weights, spread_experts

#: Slots by block, as JSON keeps them.
SlotLists = dict[str, list[list[int]]]


def first_slots(config: Config, layout: Layout, saved: SlotLists) -> dict[str, Slots]:
    """Slots of every block with experts: those `saved` with the state if they fit the layout, else for even loads; none without spare slots."""
    model, section = config.model, config.layout
    if layout.expert == 1 or not (section.expert_spare or section.expert_every):
        return {}
    blocks = [str(layer) for layer in range(model.moe.first_dense, model.layers)]
    per_place = -(-model.moe.experts // layout.expert) + section.expert_spare
    if saved and all(len(saved[block]) == layout.expert and len(saved[block][0]) == per_place for block in blocks):
        return {block: tuple(tuple(place) for place in saved[block]) for block in blocks}
    even = balanced_slots(np.ones(model.moe.experts), layout.expert, per_place)
    return dict.fromkeys(blocks, even)


class ExpertPlacer:
    """Sums the experts' loads, and moves them when due; does nothing for a layout that does not place them."""

    def __init__(self, laid: Laid, slots: Mapping[str, Slots], every: int) -> None:
        self.slots = dict(slots)
        self._laid, self._every = laid, every
        self._load_le: np.ndarray | None = None

    def observe(self, load_le: Tensor) -> None:
        """Take in a step's load of every layer with experts, summed over all ranks."""
        if self.slots and self._every:
            load = load_le.cpu().numpy()
            self._load_le = load if self._load_le is None else self._load_le + load

    def place(self, step: int, state: Callable[[], dict[str, Tensor]], names: Callable[[str], str]) -> bool:
        """Move the experts if it is due after `step` steps; return whether it was.

        `state` are the live tensors placed like parameters, and `names` says of each which parameter that is.
        """
        if not (self.slots and self._every and step % self._every == 0 and self._load_le is not None):
            return False
        places = len(next(iter(self.slots.values())))
        loads = zip(self.slots, self._load_le)
        self.slots = {block: balanced_slots(load_e, places, len(self.slots[block][0])) for block, load_e in loads}
        self._load_le = None
        decoder, weights, mesh = self._laid.decoder, self._laid.weights, self._laid.weights.mesh
        shapes = {name: placement.shape for name, placement in weights.placements.items()}
        planned = plan_weights(decoder.model, mesh.layout, shapes, self.slots, self._laid.stages)
        placed = {name for name, placement in weights.placements.items() if placement.slots and name in weights.parameters}
        tensors = {name: tensor for name, tensor in state().items() if names(name) in placed}
        old, new = ({name: plan[names(name)] for name in tensors} for plan in (weights.placements, planned))
        with torch.no_grad():
            for name, value in move_experts(tensors, old, new, mesh).items():
                tensors[name].copy_(value)
        weights.placements.update(planned)
        spread_experts(decoder, mesh, self.slots)
        return True

    def numbers(self) -> SlotLists:
        """The slots as kept with a snapshot."""
        return {block: [list(place) for place in slots] for block, slots in self.slots.items()}

