"""The training state in its one logical form: tensors by name, and a few plain numbers.

    model.<parameter or buffer>    optim.<parameter>.<moment>    ema.<parameter>    exchange.<parameter>.withheld, .factor

A rank of a parallel layout holds a part of each parameter, and of its moments and average the same part; buffers and counters are whole
and equal on all ranks. Full values, of which the digest and exports are made, come from one parameter at a time.

Everything else that decides a run's future is a pure function of its config: the data order of (seed, step), the
samples' randomness of (seed, step). So a snapshot needs no generator state and no data cursor but the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from penstock.comm import GradientReducer, PowerSGD, TopK
from penstock.optim import Optimizer, WeightAverage
from penstock.parallel import Laid, Placement, Weights, assemble


@dataclass
class Progress:
    """The plain numbers of the state; `step` counts finished optimizer steps."""

    step: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    #: The same times the ranks that there were.
    device_s: float = 0.0
    evals: list[dict[str, float]] = field(default_factory=list)
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    #: Where experts are placed by hand: by block, for each place on the expert axis the experts it holds.
    slots: dict[str, list[list[int]]] = field(default_factory=dict)
    #: Sequences that each replica reads of a global batch where they are not even, by the layout in which that was measured.
    shares: dict[str, list[int]] = field(default_factory=dict)
    #: What exchange.kind = "auto" chose, if nodes train apart.
    exchange: dict[str, int] = field(default_factory=dict)
    #: What batch.micro = "auto" chose, where a resumed run begins to try; 0: nothing yet.
    micro: int = 0
    #: The step at which the size or the length of samples' batches changed last, and the samples drawn before it (`data/batches.py`).
    since: int = 0
    drawn: int = 0
    #: Batches that were left out as their step was bad, and loss and norm of the last steps, where steps are judged by them (`guard/judge.py`).
    left_out: int = 0
    judged: list[list[float]] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """As stored in a snapshot."""
        return asdict(self)


def state_tensors(weights: Weights, buffers: dict[str, Tensor], optimizer: Optimizer, average: WeightAverage | None) -> dict[str, Tensor]:
    """The live tensors of this rank's training state by logical name; loading fills them in place."""
    tensors = {f"model.{name}": tensor for name, tensor in (weights.locals | buffers).items()}
    tensors |= optimizer.state_tensors()
    return tensors | (average.state_tensors() if average is not None else {})


def state_placements(names: Iterable[str], placements: dict[str, Placement]) -> dict[str, Placement]:
    """Placements of a state's tensors, from those of the parameters; tensors left out (buffers, counters) are whole everywhere."""
    owners = {name: parameter_of(name) for name in names}
    return {name: placements[owner] for name, owner in owners.items() if owner in placements}


def withheld_tensors(weights: Weights, reducer: GradientReducer) -> dict[str, Tensor]:
    """What the exchange between nodes withholds, by logical name `exchange.<parameter>.withheld`; on a pipeline empty tensors of other stages'.

    Also what PowerSGD begins the next step with, `exchange.<parameter>.factor`, and top-k's `exchange.<parameter>.velocity`.
    """
    layout, found = weights.mesh.layout, {}
    for name, placement in weights.placements.items() if reducer.between.withholds else ():
        if "node" in placement.replicas(layout) and reducer.between.compresses(placement.shape) and placement.cuttable:
            shape = placement.shared_by_node(layout).local_shape(layout, weights.mesh.world.rank)
            parameter = weights.parameters.get(name)
            here = weights.locals[name].new_empty(shape) if parameter is None else reducer.withheld[parameter].view(shape)
            found[f"exchange.{name}.withheld"] = here
            if isinstance(reducer.between, TopK) and reducer.between.momentum:
                found[f"exchange.{name}.velocity"] = here.new_empty(shape) if parameter is None else reducer.between.velocities[parameter].view(shape)
            if isinstance(reducer.between, PowerSGD):
                shape = placement.factor(reducer.between.rank, layout).local_shape(layout, weights.mesh.world.rank)
                found[f"exchange.{name}.factor"] = here.new_empty(shape) if parameter is None else reducer.between.factors[parameter].view(shape)
    return found


def withheld_placements(names: Iterable[str], weights: Weights, rank: int) -> dict[str, Placement]:
    """Placements of those of `withheld_tensors`; `rank` is that of the factors."""
    found, layout = {}, weights.mesh.layout
    for name in names:
        placement = weights.placements.get(name.removeprefix("exchange.").rpartition(".")[0])
        if is_withheld(name) and placement:
            found[name] = placement.shared_by_node(layout)
        elif _is_factor(name) and placement:
            found[name] = placement.factor(rank, layout)
    return found


def is_withheld(name: str) -> bool:
    """Whether a tensor of the state is what the nodes withhold of a gradient, or the velocity that it comes of."""
    return name.startswith("exchange.") and name.endswith((".withheld", ".velocity"))


def _is_factor(name: str) -> bool:
    return name.startswith("exchange.") and name.endswith(".factor")


def when_nodes_change(name: str) -> str:
    """What becomes of a tensor that has one row for every node when it is read on other nodes: each gets its part of their 'sum', or their 'mean'.

    What other nodes may have in another shape altogether begins from 'zero' there.
    """
    if _is_factor(name):
        return "zero"
    return "sum" if is_withheld(name) else "mean" if name.startswith(("optim.", "ema.", "exchange.")) else ""


def parameter_of(name: str) -> str | None:
    """The parameter (or buffer) that a tensor of the state belongs to and is placed like; None for counters."""
    kind, _, rest = name.partition(".")
    parameter, _, moment = rest.rpartition(".") if kind == "optim" else (rest, "", "")
    return None if moment == "step" else parameter


def weights_digest(laid: Laid) -> str:
    """SHA-256 over names, shapes and full values of the model's weights and buffers, the same in every layout; all ranks take part.

    Every rank hashes what it has gathered, so replicas that have drifted apart show in different digests.
    """
    digest = hashlib.sha256()
    for name, tensor in whole_tensors(laid, "digest"):
        value = tensor.to("cpu").contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def whole_model(laid: Laid) -> dict[str, Tensor]:
    """The whole model's state for sampling and export: on the CPU of the lead rank, empty on the others, which must take part."""
    state = {}
    for name, tensor in whole_tensors(laid, "export"):
        if laid.weights.mesh.world.is_lead:
            state[name] = tensor.to("cpu", copy=True)
    return state


def whole_tensors(laid: Laid, purpose: str) -> Iterator[tuple[str, Tensor]]:
    """Full values by sorted name, gathered one at a time on every rank; every rank must go through all of them."""
    tensors, placements = laid.weights.locals | laid.buffers, laid.weights.placements | laid.buffer_placements
    for name in sorted(tensors):
        yield name, assemble(tensors[name].detach(), placements[name], laid.weights.mesh, purpose)
