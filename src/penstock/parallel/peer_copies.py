"""A ring of copies in host memory: what one rank alone holds of a training state, another keeps too, so that a lost rank costs no snapshot's steps.

From time to time each rank copies its state to its own host memory, and sends its *keeper* what dies with it: the tensors of which some box
has no holder elsewhere, as placements tell. With ranks on several nodes elsewhere is another node, the keeper is on another, and of a node's
replicas the first one sends. What a keeper `held` of a lost rank is then one of `plan_transition`'s `copies`, the others' state what they kept of
themselves.

When ranks are to leave in order, `hand_over` does the same once, from those to the others.

Two generations are kept in turn. One that is cut short leaves the other whole, and a rank begins the next only after a step that all ranks had a part
in, so some generation is whole on all survivors, whichever of them were interrupted where. Which one, they must agree on (`steps`).

Cost: memory of the host, two times the rank's state and what it keeps of another (with ZeRO 3 and AdamW in float32 four times 12 bytes times the
parameters over the ranks); a copy of the state per generation; on the network the bytes that have no replica, counted as `peer_copies`, in
rounds of `ROUND` bytes a rank, and a round's room on the device. When not to use it: where every piece has a replica that will survive, or
a snapshot's steps are soon taken again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.comm import Axis
from penstock.parallel.layout import Layout
from penstock.parallel.placement import Placement
from penstock.parallel.transition import ROUND, holders_of


@dataclass
class _Generation:
    """A rank's own tensors at a step, and those it keeps of others; None: they are being written."""

    step: int | None
    own: dict[str, Tensor]
    kept: dict[int, dict[str, Tensor]]


class PeerCopies:
    """One rank's copies of a state of which every rank holds `tensors`, placed as `placements` (one for each) say on `layout`.

    `axis` is all ranks of it in order. Where a state comes to lie otherwise, such as experts placed by hand that move, copies are made anew.
    """

    def __init__(self, tensors: Mapping[str, Tensor], placements: Mapping[str, Placement], layout: Layout, axis: Axis) -> None:
        assert axis.size == layout.ranks
        to = keepers(axis.size, axis.nodes)
        sent = [sorted(alone(placements, layout, rank, axis.nodes)) if to else [] for rank in range(axis.size)]
        self._axis, self._way = axis, _Way(tensors, placements, layout, axis, to, sent)
        self._generations = [self._room(tensors) for _ in range(2)]

    @property
    def steps(self) -> list[int]:
        """The steps of whole generations, ascending."""
        return sorted(generation.step for generation in self._generations if generation.step is not None)

    @property
    def n_bytes(self) -> int:
        """Bytes of host memory for all copies."""
        sets = [tensors for each in self._generations for tensors in (each.own, *each.kept.values())]
        return sum(tensor.numel() * tensor.element_size() for tensors in sets for tensor in tensors.values())

    @torch.no_grad()
    def keep(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the state after so many finished steps in place of the older generation; all ranks must call it."""
        oldest = min(self._generations, key=lambda each: -1 if each.step is None else each.step)
        oldest.step = None
        for name, own in oldest.own.items():
            own.copy_(tensors[name].detach())
        self._way.send(tensors, oldest.kept)
        oldest.step = step

    def held(self, step: int) -> dict[int, dict[str, Tensor]]:
        """What this rank has of a generation, as `carry` takes it: its own tensors, and those it keeps of others."""
        generation = next(each for each in self._generations if each.step == step)
        return {self._axis.index: generation.own, **generation.kept}

    def _room(self, tensors: Mapping[str, Tensor]) -> _Generation:
        return _Generation(None, {name: self._way.zeros(name, tuple(tensor.shape)) for name, tensor in tensors.items()}, self._way.room())


class _Way:
    """Who sends which tensors to whom: the names in `sent[r]` go from rank r to rank `to[r]`. A function of placements, so all know all of it."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        placements: Mapping[str, Placement],
        layout: Layout,
        axis: Axis,
        to: Sequence[int],
        sent: Sequence[Sequence[str]],
    ) -> None:
        self._axis, self._to, self._sent, self._device = axis, to, sent, next(iter(tensors.values())).device
        self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self._shapes = [{name: placements[name].local_shape(layout, rank) for name in names} for rank, names in enumerate(sent)]

    def zeros(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Room for a tensor in host memory."""
        return torch.zeros(shape, dtype=self._dtypes[name], pin_memory=self._device.type == "cuda")

    def room(self) -> dict[int, dict[str, Tensor]]:
        """Room for what comes to this rank, by sender."""
        mine = [rank for rank, to in enumerate(self._to) if to == self._axis.index and rank != to]
        return {rank: {name: self.zeros(name, shape) for name, shape in self._shapes[rank].items()} for rank in mine}

    def send(self, tensors: Mapping[str, Tensor], kept: dict[int, dict[str, Tensor]]) -> None:
        """Send this rank's part of `tensors`, and receive what comes to it into `kept`, in rounds. All ranks must call it."""
        sizes = [sum(self._bytes(rank, name) for name in names) for rank, names in enumerate(self._sent)]
        axis, here = self._axis, self._axis.index
        outgoing = _Bytes([tensors[name].detach() for name in self._sent[here]])
        incoming = {rank: _Bytes(list(parts.values())) for rank, parts in kept.items()}
        limit = ROUND // max(1, max((self._to.count(rank) for rank in self._to), default=1))
        for start in range(0, max(sizes, default=0), limit):
            part = [min(max(size - start, 0), limit) for size in sizes]
            send = [part[here] if self._to[here] == rank else 0 for rank in range(axis.size)]
            receive = [part[rank] if self._to[rank] == here else 0 for rank in range(axis.size)]
            came = axis.all_to_all(outgoing.read(start, sum(send), self._device), send, receive, "peer_copies")
            for rank, piece in zip(sorted(incoming), came.split([receive[rank] for rank in sorted(incoming)])):
                incoming[rank].write(start, piece)

    def _bytes(self, rank: int, name: str) -> int:
        return torch.Size(self._shapes[rank][name]).numel() * self._dtypes[name].itemsize


@torch.no_grad()
def hand_over(
    tensors: Mapping[str, Tensor], placements: Mapping[str, Placement], layout: Layout, axis: Axis, leaving: Collection[int]
) -> dict[int, dict[str, Tensor]]:
    """Before ranks leave: what only they have goes to those that stay, evenly. Returns what this rank keeps now, by leaving rank.

    Arguments as for `PeerCopies`; all ranks must call it. Of leaving replicas the first one sends.
    """
    stay = [rank for rank in range(axis.size) if rank not in leaving]
    places = [-1 if rank in leaving else rank for rank in range(axis.size)]
    to = [stay[place % len(stay)] for place in range(axis.size)]
    sent = [sorted(alone(placements, layout, rank, places)) if rank in leaving else [] for rank in range(axis.size)]
    way = _Way(tensors, placements, layout, axis, to, sent)
    kept = way.room()
    way.send(tensors, kept)
    return kept


def keepers(ranks: int, nodes: Sequence[int] = ()) -> tuple[int, ...]:
    """For every rank the one that keeps its copy: on another node where there are several, with as few to keep as can be, next along the ring.

    One rank alone has none: an empty answer.
    """
    if ranks == 1:
        return ()
    places = _places(ranks, nodes)
    found: list[int] = []
    for rank in range(ranks):
        others = [other for other in range(ranks) if places[other] != places[rank]]
        found.append(min(others, key=lambda other: (found.count(other), (other - rank) % ranks)))
    return tuple(found)


def alone(placements: Mapping[str, Placement], layout: Layout, rank: int, nodes: Sequence[int] = ()) -> frozenset[str]:
    """The tensors of which `rank` is to send a copy: of some box it is the first holder, and no holder is on another node (or, on one node, rank)."""
    places, found = _places(layout.ranks, nodes), {}
    for placement in set(placements.values()):
        of_boxes = [sorted({holder for holder, _ in holders}) for holders in holders_of(placement, layout).values()]
        found[placement] = any(of_box[0] == rank and len({places[holder] for holder in of_box}) == 1 for of_box in of_boxes)
    return frozenset(name for name, placement in placements.items() if found[placement])


def _places(ranks: int, nodes: Sequence[int]) -> Sequence[int]:
    """What is lost together: nodes where there are several, else ranks."""
    return nodes if len(set(nodes)) > 1 else range(ranks)


class _Bytes:
    """Tensors as one sequence of bytes, read and written in parts without ever being joined."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]

    def read(self, start: int, count: int, device: torch.device) -> Tensor:
        """So many bytes from `start` on, as a new tensor on the device."""
        return torch.cat([torch.empty(0, dtype=torch.uint8, device=device), *(piece for piece, _ in self._within(start, count))])

    def write(self, start: int, data: Tensor) -> None:
        """Put bytes in their places from `start` on; the tensors must be contiguous."""
        for piece, place in self._within(start, data.numel()):
            piece.copy_(data[place : place + piece.numel()])

    def _within(self, start: int, count: int) -> list[tuple[Tensor, int]]:
        """The parts of the tensors in this stretch, and where each begins in it."""
        found, begin = [], 0
        for part in self._parts:
            first, last = max(start - begin, 0), min(start + count - begin, part.numel())
            if first < last:
                found.append((part[first:last], begin + first - start))
            begin += part.numel()
        return found
