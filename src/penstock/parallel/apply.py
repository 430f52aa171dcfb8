"""A layout applied to a decoder, in one fixed order:

    plan → layers of the tensor grid → context → experts → own stages → local shapes → shard (FSDP2) → memory → initial values

The decoder is built without memory (on the meta device), so no rank ever holds more than its part; initial values are a pure function of seed
and name, drawn in full one matrix at a time and kept in part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from penstock.comm import Route, World
from penstock.config import ModelSection
from penstock.models import Decoder, allocate, initial_value
from penstock.parallel.context import split_context
from penstock.parallel.experts.balance import Slots
from penstock.parallel.experts.expert import spread_experts
from penstock.parallel.layout import Layout
from penstock.parallel.mesh import Mesh
from penstock.parallel.pipeline.stages import Stages, keep_stages
from penstock.parallel.placement import Placement
from penstock.parallel.plan import plan_weights
from penstock.parallel.shard import Formats, Sharder, shard_weights
from penstock.parallel.tensor.grid import apply_grid
from penstock.parallel.tensor.tesseract import apply_tesseract
from penstock.parallel.weights import Weights, own_part


@dataclass(frozen=True)
class Laid:
    """A decoder laid out on the mesh: its weights as this rank holds them, and the handle of the shard axis."""

    decoder: Decoder
    weights: Weights
    sharder: Sharder
    #: The decoder's buffers that belong to its state (the balancing bias of experts), and where they are; empty tensors of other stages'.
    buffers: dict[str, Tensor]
    buffer_placements: dict[str, Placement]
    stages: Stages | None = None

    def placement_of(self, parameter: nn.Parameter) -> Placement:
        """Where the pieces of a parameter that this rank has a piece of lie."""
        return self.weights.placements[next(name for name, p in self.weights.parameters.items() if p is parameter)]

    def routes(self) -> list[tuple[nn.Parameter, Route]]:
        """Every parameter here with the ranks over which its gradient is still to be summed after the backward pass."""
        mesh, weights = self.weights.mesh, self.weights
        routes = {name: mesh.route(placement) for name, placement in weights.placements.items()}  # on all ranks: it makes the groups
        return [(p, routes[name]) for name, p in weights.parameters.items()]


def lay_out(
    model: ModelSection,
    seed: int | None,
    mesh: Mesh,
    formats: Formats = Formats(),
    slots: Mapping[str, Slots] | None = None,
    stages: Stages | None = None,
) -> Laid:
    """Build the resolved `model` on the mesh with its initial weights for `seed`, in float32 unless `formats` says otherwise.

    Without a seed they are left unset. `slots[block]` places a block's experts by hand; `stages` cuts the layers over the pipeline.
    """
    formats = formats or Formats()
    with torch.device("meta"):
        kept = saved_buffers(Decoder(model).to(formats.master))
    decoder, plan, sharder = shape_decoder(model, mesh, formats, slots, stages)
    if mesh.layout.sharded:
        decoder.to_empty(device=mesh.world.device)  # which FSDP2 follows
    else:
        allocate(decoder, mesh.world.device)
    weights = Weights(decoder, plan, mesh)
    if seed is not None:
        _draw(weights, model, seed)
    with torch.no_grad():
        for buffer in decoder.buffers():
            buffer.zero_()
    places = {name: Placement(tuple(b.shape), holders=stages.holders(name) if stages else ()) for name, b in kept.items()}
    here = saved_buffers(decoder)
    empty = {name: torch.empty(0, *b.shape[1:], dtype=b.dtype, device=mesh.world.device) for name, b in kept.items()}
    buffers = empty | here
    return Laid(decoder, weights, sharder, buffers, places, stages)


def laid_whole(decoder: Decoder) -> Laid:
    """A decoder that is whole in this process, as a layout of one rank."""
    mesh, buffers = Mesh(Layout(), World()), saved_buffers(decoder)
    plan = {name: Placement(tuple(p.shape)) for name, p in decoder.named_parameters()}
    return Laid(decoder, Weights(decoder, plan, mesh), Sharder(), buffers, {name: Placement(tuple(b.shape)) for name, b in buffers.items()})


def saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The model's buffers that belong to its state, by logical name."""
    buffers = dict(model.named_buffers())
    return {name: buffers[name] for name in model.state_dict() if name in buffers}


def shape_decoder(
    model: ModelSection, mesh: Mesh, formats: Formats, slots: Mapping[str, Slots] | None = None, stages: Stages | None = None
) -> tuple[Decoder, dict[str, Placement], Sharder]:
    """The laid-out decoder on the meta device, without memory; the plan of its weights; the handle of the shard axis."""
    with torch.device("meta"):
        decoder = Decoder(model)
    plan = plan_weights(model, mesh.layout, {name: tuple(p.shape) for name, p in decoder.named_parameters()}, slots, stages)
    if mesh.layout.tensor > 1:
        (apply_tesseract if mesh.layout.topology == "2.5d" else apply_grid)(decoder, mesh)
    if mesh.layout.context > 1:
        split_context(decoder, mesh.axis("context"))
    if mesh.layout.expert > 1:
        spread_experts(decoder, mesh, slots)
    if stages is not None:
        keep_stages(decoder, stages, mesh.layout.coordinate(mesh.world.rank, "pipeline"))
    _shrink(decoder.to(formats.master), plan, mesh)
    return decoder, plan, shard_weights(decoder, mesh, plan, formats)


def _shrink(decoder: Decoder, plan: dict[str, Placement], mesh: Mesh) -> None:
    """Give every parameter the shape it has on this rank before FSDP cuts it."""
    for name, parameter in list(decoder.named_parameters()):
        shape = plan[name].without(mesh.layout.shard_axes, mesh.layout.expert_shard_axes).local_shape(mesh.layout, mesh.world.rank)
        owner, _, key = name.rpartition(".")
        setattr(decoder.get_submodule(owner), key, nn.Parameter(parameter.new_empty(shape)))


@torch.no_grad()
def _draw(weights: Weights, model: ModelSection, seed: int) -> None:
    """Fill every local tensor with its part of the initial value."""
    mesh = weights.mesh
    for name in weights.parameters:
        tensor, placement = weights.locals[name], weights.placements[name]
        if len(placement.shape) < 3:
            tensor.copy_(own_part(initial_value(model, seed, name, placement.shape), placement, mesh))
            continue
        row = 0
        for box in placement.boxes(mesh.layout, mesh.world.rank):  # stacks of experts, drawn one by one to bound the memory on the CPU
            for expert in range(box.offsets[0], box.offsets[0] + box.sizes[0]):
                tensor[row].copy_(initial_value(model, seed, name, placement.shape[1:], expert)[box.slices[1:]])
                row += 1
