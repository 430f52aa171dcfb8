"""The trained parameters as a rank holds them, and the way to and from their full form.

A module may hold a parameter as FSDP2's DTensor; optimizers, averages and snapshots work on plain tensors by logical name. `Weights` keeps both:
`locals[name]` shares its memory with the parameter, and `collect` puts the parameter's gradient beside it. Every rank of a pipeline has all
names: of what its stages do not hold it has an empty tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from penstock.comm import local
from penstock.parallel.mesh import Mesh
from penstock.parallel.placement import Box, Placement


class Weights:
    """Parameters of `model` by logical name, as placed on the mesh; tied ones once, under the first of their names."""

    def __init__(self, model: nn.Module, placements: dict[str, Placement], mesh: Mesh) -> None:
        self.mesh, self.parameters = mesh, dict(model.named_parameters())
        self.placements = dict(placements)
        self.locals: dict[str, Tensor] = {}
        self._owned: dict[tuple[Placement, tuple[str, ...]], tuple[list[Box], list[bool]]] = {}
        like = next(iter(self.parameters.values()))
        for name, placement in placements.items():
            expected = placement.local_shape(mesh.layout, mesh.world.rank)
            tensor = local(self.parameters[name]) if placement.held_by(mesh.layout, mesh.world.rank) else local(like).new_empty(expected)
            if tensor.numel() == 0:  # FSDP2 gives an empty cut another empty shape
                tensor = tensor.view(expected)
            assert tensor.shape == expected, f"{name} is {tuple(tensor.shape)} on rank {mesh.world.rank}, planned {expected}"
            self.locals[name] = tensor
        layout = mesh.layout
        #: Whether every rank holds every parameter whole.
        self.whole_here = all(layout.size(*placement.axes) == 1 and not placement.slots for placement in self.placements.values())

    @property
    def n_total(self) -> int:
        """Trained numbers of the whole model."""
        return sum(torch.Size(placement.shape).numel() for placement in self.placements.values())

    def collect(self) -> list[Tensor]:
        """Put every parameter's gradient, as far as this rank holds it, on its plain tensor; return those there are."""
        for name, tensor in self.locals.items():
            parameter = self.parameters.get(name)
            if parameter is None:  # another stage's: the optimizer counts its steps here too
                tensor.grad = torch.zeros_like(tensor)
            else:
                tensor.grad = None if parameter.grad is None else local(parameter.grad).view(tensor.shape)
        return [tensor.grad for tensor in self.locals.values() if tensor.grad is not None]

    def counted(self, alone: tuple[str, ...] = ()) -> list[Tensor]:
        """Views of the collected gradients that together, over all ranks, hold every element of the whole gradient once.

        Ranks at each place on the axes `alone` count for themselves.
        """
        return [part for _, part in self.counted_of({name: t.grad for name, t in self.locals.items() if t.grad is not None}, alone)]

    def counted_of(self, tensors: Mapping[str, Tensor], alone: tuple[str, ...] = ()) -> list[tuple[str, Tensor]]:
        """The same of any tensors that lie as the parameters of their names do, each view with that name."""
        found: list[tuple[str, Tensor]] = []
        for name, tensor in tensors.items():
            boxes, mine = self._boxes_owned(self.placements[name], alone)
            found += [(name, part) for part, owned in zip(box_views(tensor, boxes), mine) if owned]
        return found

    def _boxes_owned(self, placement: Placement, alone: tuple[str, ...]) -> tuple[list[Box], list[bool]]:
        """This rank's boxes of a tensor placed so, and which of them count; kept, as every step asks for those of every parameter."""
        if (placement, alone) not in self._owned:
            layout, rank = self.mesh.layout, self.mesh.world.rank
            self._owned[placement, alone] = placement.boxes(layout, rank), placement.owned(layout, rank, alone=alone)
        return self._owned[placement, alone]

    def drop_gradients(self) -> None:
        """Forget all gradients."""
        for tensor in (*self.parameters.values(), *self.locals.values()):
            tensor.grad = None

    def whole(self, name: str, tensor: Tensor, purpose: str) -> Tensor:
        """The full tensor of which every rank gives its part, placed like parameter `name`; on every rank. All ranks must call it."""
        return assemble(tensor, self.placements[name], self.mesh, purpose)

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a full tensor placed like parameter `name`, a copy."""
        return own_part(whole, self.placements[name], self.mesh)


def assemble(tensor: Tensor, placement: Placement, mesh: Mesh, purpose: str) -> Tensor:
    """Join the parts of a tensor from all ranks that hold different ones; every rank of the mesh must call it."""
    axes = tuple(sorted(placement.axes, key=lambda a: -mesh.layout.stride(a)))
    axis = mesh.axis(*axes)
    if axis.size == 1 and not placement.slots:
        return tensor.clone()
    boxes = [placement.boxes(mesh.layout, rank) for rank in axis.ranks]
    room = max(sum(box.numel for box in of_rank) for of_rank in boxes)
    flat = tensor.new_zeros(room)
    flat[: tensor.numel()] = tensor.reshape(-1)
    parts = axis.all_gather(flat, 0, purpose).view(axis.size, room)
    whole = tensor.new_empty(placement.shape)
    for of_rank, part in zip(boxes, parts):
        start = 0
        for box in of_rank:
            whole[box.slices] = part[start : start + box.numel].view(box.sizes)
            start += box.numel
    return whole


def box_views(tensor: Tensor, boxes: list[Box]) -> list[Tensor]:
    """The boxes of a rank's tensor, which lie one behind the other along dim 0, as views."""
    return [tensor] if len(boxes) == 1 else list(tensor.split([box.sizes[0] for box in boxes]))


def own_part(whole: Tensor, placement: Placement, mesh: Mesh) -> Tensor:
    """This rank's part of a full tensor, a copy."""
    boxes = placement.boxes(mesh.layout, mesh.world.rank)
    return torch.cat([whole[box.slices] for box in boxes]) if len(boxes) > 1 else whole[boxes[0].slices].clone()
