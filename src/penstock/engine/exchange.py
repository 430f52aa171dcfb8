"""What the engine does about the exchange between nodes: asks whether messages arrived, and lets nodes that train apart meet.

Nodes that train apart (`exchange.kind = 'periodic'`) have weights and moments of their own. The model of the run is the reference that they agree
on: it is evaluated, saved and exported. A snapshot holds beside it every node's own weights and moments, one behind the other in a leading dim, so
a resumed run goes on bit for bit; read on another number of nodes, or by a run of another kind, each gets the mean of the nodes' weights and moments,
so that no step is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penstock.comm import GradientReducer, Periodic, PowerSGD
from penstock.comm.gradients.between import Between
from penstock.config import Config, SharedError, UserError
from penstock.engine.state import parameter_of
from penstock.parallel import Layout, Placement, Weights

if TYPE_CHECKING:
    from penstock.engine.build import Core

#: Times that something is sent again because it arrived damaged.
RESENDS = 2


def check_exchange(config: Config, layout: Layout) -> None:
    """Refuse to compress what no replica on another node would receive."""
    if config.exchange.kind not in ("dense", "auto") and layout.node == 1:
        raise UserError(
            f"exchange.kind = '{config.exchange.kind}' is a way of exchange between nodes, and with {layout} no weight has replicas on several: "
            "start ranks on more nodes, say which ranks share one with exchange.topology (such as '2x1'), or set exchange.kind to 'dense'"
        )


def check_rank(between: Between, placements: Iterable[Placement]) -> None:
    """Refuse a rank that saves nothing on any parameter."""
    if isinstance(between, PowerSGD) and not any(between.compresses(placement.shape) for placement in placements):
        raise UserError(
            f"exchange.rank = {between.rank} saves nothing: for every matrix of this model rank × (rows + columns) is no less than its entries; "
            "set it lower, or exchange.kind to 'dense'"
        )


class Arrival:
    """Asks all ranks whether what was sent this time came undamaged; raises `SharedError` when it did not too often."""

    def __init__(self, parts: Core) -> None:
        self._parts, self._tries = parts, 0
        #: Whether some rank had numbers to send that are not finite.
        self.overflow = False

    def agreed(self, faults: list[str], overflow: bool) -> bool:
        """Whether all is well, or will not be by sending it again; all ranks must ask."""
        world = self._parts.world
        found = world.gather_numbers(2.0 * overflow + bool(faults), "arrived")
        self.overflow = max(found) >= 2
        if self.overflow or not any(found):
            return True
        first = next(rank for rank, flag in enumerate(found) if flag)
        text = world.share(f"rank {world.rank} received {faults[0]}" if faults else "", first)
        self._tries += 1
        self._parts.notes["exchanges_repeated"] = float(self._tries)
        if self._tries > RESENDS:
            raise SharedError(f"{text}; sent {self._tries} times in vain, so nothing of it was used: look for a faulty network adapter or memory")
        return False


def meet(parts: Core, steps: int) -> None:
    """After so many steps, bring nodes that train apart together if that is due; after the last step with all that they have."""
    apart, last = apart_of(parts.reducer), steps == parts.config.train.steps
    if apart is None or (steps % apart.every and not last):
        return
    arrival = Arrival(parts)
    apart.meet(steps, arrival.agreed, parts.world.meter, last)
    if arrival.overflow:
        raise SharedError(f"step {steps - 1}: weights of some node are not finite; go on from the last snapshot with a smaller optim.lr")


def apart_of(reducer: GradientReducer) -> Periodic | None:
    """The exchange that lets nodes train apart, if the run has it."""
    return reducer.between if isinstance(reducer.between, Periodic) else None


@contextmanager
def consensus(parts: Core) -> Iterator[None]:
    """The weights are what all nodes agree on inside the block, and each node's own again, bit for bit, after it."""
    apart = apart_of(parts.reducer)
    if apart is None:
        yield
        return
    locals_ = list(parts.weights.locals.values())
    own = [tensor.clone() for tensor in locals_]
    _copy(locals_, list(references(parts.weights, apart).values()))
    parts.laid.sharder.reshard()
    try:
        yield
    finally:
        _copy(locals_, own)
        parts.laid.sharder.reshard()


def references(weights: Weights, apart: Periodic) -> dict[str, Tensor]:
    """The reference by the parameters' logical names, empty for another pipeline stage's."""
    return {
        name: apart.reference[weights.parameters[name]].view(tensor.shape) if name in weights.parameters else tensor
        for name, tensor in weights.locals.items()
    }


def state_apart(tensors: dict[str, Tensor], weights: Weights, apart: Periodic) -> dict[str, Tensor]:
    """The training state of nodes that train apart, from the one that this node would have alone."""
    found = {}
    for name, tensor in tensors.items():
        placement = weights.placements.get(parameter_of(name) or "")
        if placement is None:
            found[name] = tensor
        elif name.startswith("model."):
            parameter = name.removeprefix("model.")
            found[name] = references(weights, apart)[parameter]
            found[f"exchange.{parameter}.local"] = _one_of(tensor, placement, weights)
        else:
            found[name] = _one_of(tensor, placement, weights)
    return found


def placements_apart(placements: dict[str, Placement], weights: Weights) -> dict[str, Placement]:
    """Placements of `state_apart`, from those of the state that a node would have alone."""
    layout, found = weights.mesh.layout, {}
    for name, placement in placements.items():
        parameter = parameter_of(name) or ""
        if parameter not in weights.placements:
            found[name] = placement
        elif name.startswith("model."):
            found[name], found[f"exchange.{parameter}.local"] = placement, placement.by_node(layout)
        else:
            found[name] = placement.by_node(layout)
    return found


def begin_together(parts: Core) -> None:
    """Give every node the reference for its own weights."""
    apart = apart_of(parts.reducer)
    if apart is not None:
        _copy(list(parts.weights.locals.values()), list(references(parts.weights, apart).values()))


def room_for_locals(core: Core, there: Collection[str]) -> dict[str, Tensor]:
    """Tensors to read the mean of the nodes' own weights into, by logical name, where the state `there` is of nodes that train apart and this is not.

    The reference lacks the steps since the nodes met last, and their mean has them. They are placed as the parameters are; `settle` takes them over.
    """
    if apart_of(core.reducer):
        return {}
    locals_ = {f"exchange.{name}.local": tensor for name, tensor in core.weights.locals.items()}
    return {name: torch.empty_like(tensor) for name, tensor in locals_.items() if name in there}


def placements_of(room: Iterable[str], core: Core) -> dict[str, Placement]:
    """Placements of `room_for_locals`."""
    return {name: core.weights.placements[_owner(name)] for name in room}


def settle(core: Core, there: Collection[str], room: Mapping[str, Tensor]) -> None:
    """After the state `there` was read, give nodes their weights: the mean in `room` of nodes that trained apart, else the model's."""
    if room:
        _copy([core.weights.locals[_owner(name)] for name in room], list(room.values()))
    elif not any(name.endswith(".local") for name in there):
        begin_together(core)


def _owner(local: str) -> str:
    """The parameter of a node's own weights, `exchange.<parameter>.local`."""
    return local.removeprefix("exchange.").removesuffix(".local")


def _one_of(tensor: Tensor, placement: Placement, weights: Weights) -> Tensor:
    """This node's row of a stack of all nodes' tensors, a view."""
    shape = placement.by_node(weights.mesh.layout).local_shape(weights.mesh.layout, weights.mesh.world.rank)
    return tensor.detach().view(shape)


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    torch._foreach_copy_([target.detach() for target in targets], [source.detach() for source in sources])
