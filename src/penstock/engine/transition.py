"""A run's training state carried to another core through memory: other layout, other ranks, other nodes, some of the old ranks gone.

    StateMap       where each tensor of a state lies; a pure function of the old core, told to processes that were not there
    carry_state    plans (`parallel/transition.py`), moves if nothing is missing, and deals with rows of nodes as snapshots do

Rows of nodes: what the exchange between nodes withholds, and weights, moments and averages of nodes that train apart, are stacked by node. On another
number of nodes each gets its part of the rows' sum, or their mean, or zeros (`state.when_nodes_change`, `store/cells/node_rows.py`); so the whole
stack of a box first goes to whoever holds a row of it. All else arrives bit for bit.

Cost: what a rank lacks of its new state, once over the network, and both states in memory; for rows of nodes as many times that box as there were
nodes. When not to use it: where the answer is not empty; nothing has been moved then, and a snapshot serves.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penstock.comm import World
from penstock.engine.exchange import placements_of, room_for_locals, settle
from penstock.engine.state import when_nodes_change
from penstock.parallel import Copy, Layout, Missing, Placement, Split, carry, find_missing, placed, plan_transition
from penstock.store.cells.node_rows import fill_rows, has_other_rows, rows_placement

if TYPE_CHECKING:
    from penstock.engine.build import Core


@dataclass(frozen=True)
class StateMap:
    """Where every tensor of a state lies: the ranks' layout, and a placement for each name."""

    layout: Layout
    placements: dict[str, Placement]

    @classmethod
    def of(cls, core: Core) -> StateMap:
        """That of a core's state."""
        return cls(core.layout, placed(core.tensors(), core.placements()))

    def missing(self, sources: Mapping[int, Collection[int]], copies: Sequence[Copy] = ()) -> tuple[Missing, ...]:
        """What none of the sources has, whatever comes after; arguments as for `carry_state`."""
        return find_missing(self.layout, self.placements, sources, copies)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; tensors with the same placement share its entry."""
        distinct = {placement: number for number, placement in enumerate(dict.fromkeys(self.placements.values()))}
        names = {name: distinct[placement] for name, placement in self.placements.items()}
        return {"layout": asdict(self.layout), "placements": [asdict(placement) for placement in distinct], "names": names}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StateMap:
        """What `as_dict` gave."""
        distinct = [_placement(entry) for entry in data["placements"]]
        return cls(Layout(**data["layout"]), {name: distinct[number] for name, number in data["names"].items()})

    @classmethod
    def shared(cls, own: StateMap | None, world: World, source: int) -> StateMap:
        """That of the rank `source`, on every rank; all must call it, those that were not there with None."""
        return cls.from_dict(json.loads(world.share(json.dumps(own.as_dict()) if own and world.rank == source else "", source)))


@torch.no_grad()
def carry_state(
    core: Core,
    old: StateMap,
    held: Mapping[int, Mapping[str, Tensor]],
    sources: Mapping[int, Collection[int]],
    copies: Sequence[Copy] = (),
    leave: Collection[str] = (),
) -> tuple[Missing, ...]:
    """Fill a new core's state from the old one's and return (); or, where no source has some of it, move nothing and return what is missing.

    All ranks of the new core must call it, with the same `old`, `sources` (old rank → new ranks that have all its tensors) and `copies`; `held` is
    what this process has: old rank → tensors by name, none for a newcomer. Tensors to `leave` are made from something else.
    """
    room = room_for_locals(core, old.placements)
    new = {name: tensor for name, tensor in (core.tensors() | room).items() if name not in leave}
    wanted = placed(new, core.placements() | placements_of(room, core))
    before = {name: placement.shape for name, placement in old.placements.items()}
    changed = [name for name, to in wanted.items() if has_other_rows(before.get(name), to.shape, name, when_nodes_change(name))]
    zero = [name for name in changed if name not in before or when_nodes_change(name) == "zero"]
    stacks = {name: rows_placement(before[name], wanted[name]) for name in changed if name not in zero and not wanted[name].slots}
    after = {name: to for name, to in wanted.items() if name not in zero} | stacks
    plan = plan_transition(old.layout, old.placements, core.layout, after, sources, copies, core.world.nodes)
    if plan.missing:
        return plan.missing
    rows = {name: new[name].new_empty(to.local_shape(core.layout, core.world.rank)) for name, to in stacks.items()}
    carry(plan, held, {name: rows.get(name, new[name]) for name in after}, core.world.axis)
    for name, stack in rows.items():
        if new[name].numel():
            fill_rows(new[name], stack, wanted[name].shape[0] if wanted[name].shape else 1, when_nodes_change(name))
    for name in zero:
        new[name].zero_()
    settle(core, old.placements, room)
    return ()


def _placement(entry: Mapping[str, Any]) -> Placement:
    splits = tuple(Split(split["dim"], tuple(split["axes"]), split["unit"]) for split in entry["splits"])
    return Placement(tuple(entry["shape"]), splits, tuple(map(tuple, entry["slots"])), tuple(entry["holders"]))
