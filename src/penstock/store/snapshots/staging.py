"""A rank's part of a snapshot in host memory: copied at a step boundary, then put together while training goes on.

    copy       at the boundary: each of the rank's own cells that lies in one of its boxes goes to its place in `cells`, every part that it gives
               of a straddling cell to `loose`, in the order in which it will travel. One copy of each byte, nothing else.
    assemble   beside training: the loose parts travel between the ranks, round by round (`cells/grid.py`), to their places in `cells`.

The room is made once and used again. On CUDA it is pinned, and the copies are put on the training stream: later work of that stream waits for them,
the host does not.

Cost: host memory for the rank's own cells and the parts it gives (its share of the state), and a round's parts while they come. When not to use it:
without a background writer; then one would rather write from the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.comm import Axis
from penstock.parallel import Box, common, inside
from penstock.parallel.weights import box_views
from penstock.store.cells.grid import Cell, StatePlan, rounds

#: Bytes that a cell's place begins at a multiple of, and a part's in a message.
ALIGN, PART_ALIGN = 64, 8
#: Bytes of straddling cells that a rank puts together in one round.
ROUND = 1 << 24


@dataclass(frozen=True)
class Source:
    """Where a rank finds a box: in its box number `number` of tensor `name`, at `index`."""

    name: str
    number: int
    index: tuple[slice, ...]


@dataclass(frozen=True)
class Trip:
    """A round as one rank sees it: bytes to and from every rank, where its own begin in the loose parts, and where those that come belong.

    `takes` gives for each part its own cell's place, the index in it, and the offset in what came.
    """

    start: int
    send: tuple[int, ...]
    receive: tuple[int, ...]
    takes: tuple[tuple[int, tuple[slice, ...], int], ...]


class Share:
    """What one rank does for a snapshot, by the plan: its own cells, what it copies where, and its trips."""

    def __init__(self, plan: StatePlan, rank: int) -> None:
        self.dtypes, self.rank, self.ranks = plan.dtypes, rank, plan.layout.ranks
        #: The boxes that this rank holds of each tensor.
        self.boxes = {name: placement.boxes(plan.layout, rank) for name, placement in plan.placements.items()}
        self.cells = plan.cells_of(rank)
        self.places = _offsets([cell.n_bytes for cell in self.cells], ALIGN)
        #: For each own cell that lies in one box, where that is.
        self.whole = {place: self._source(cell.name, cell.box) for place, cell in enumerate(self.cells) if cell.whole}
        #: Every loose part that this rank gives: where it is, its size, and its offset.
        self.gives: list[tuple[Source, Box, int]] = []
        self.trips = self._trips(rounds(plan.cells, ROUND))

    @property
    def n_bytes(self) -> tuple[int, int]:
        """Bytes of room for the own cells, and for the loose parts."""
        loose = sum(sum(trip.send) for trip in self.trips)
        return (self.places[-1] + self.cells[-1].n_bytes if self.cells else 0), loose

    def _source(self, name: str, box: Box) -> Source:
        number, whole = next((n, own) for n, own in enumerate(self.boxes[name]) if own.numel and common(own, box) == box)
        return Source(name, number, inside(box, whole))

    def _trips(self, all_rounds: list[list[Cell]]) -> list[Trip]:
        trips, start = [], 0
        place_of = {(cell.name, cell.index): place for place, cell in enumerate(self.cells)}
        for cells in all_rounds:
            send, receive, takes = [0] * self.ranks, [0] * self.ranks, []
            for target in range(self.ranks):
                for cell, box in _parts(cells, target, self.rank):
                    self.gives.append((self._source(cell.name, box), box, start + sum(send)))
                    send[target] += self._room(cell.name, box)
            for giver in range(self.ranks):
                for cell, box in _parts(cells, self.rank, giver):
                    takes.append((place_of[cell.name, cell.index], inside(box, cell.box), sum(receive)))
                    receive[giver] += self._room(cell.name, box)
            trips.append(Trip(start, tuple(send), tuple(receive), tuple(takes)))
            start += sum(send)
        return trips

    def _room(self, name: str, box: Box) -> int:
        return -(-box.numel * self.dtypes[name].itemsize // PART_ALIGN) * PART_ALIGN


class HostCells:
    """Room for the content of a rank's own cells."""

    def __init__(self, share: Share, pinned: bool) -> None:
        self._bytes = _room(share.n_bytes[0], pinned)
        #: Each cell's numbers, in its own shape.
        self.cells = [
            _as(self._bytes, start, share.dtypes[cell.name], cell.box.sizes) for cell, start in zip(share.cells, share.places)
        ]


class Staging:
    """Copies a rank's share of a state to host memory, and puts its cells together there."""

    def __init__(self, share: Share, device: torch.device) -> None:
        self.share = share
        self._on_cuda = device.type == "cuda"
        self._loose = _room(share.n_bytes[1], self._on_cuda)
        self._parts = [_as(self._loose, start, share.dtypes[source.name], box.sizes) for source, box, start in share.gives]
        self._copied: torch.cuda.Event | None = None

    def room(self) -> HostCells:
        """New room for the own cells; all of it has been touched, so that the first copy into it is as fast as the next."""
        return HostCells(self.share, self._on_cuda)

    def copy(self, tensors: Mapping[str, Tensor], to: HostCells) -> None:
        """Copy what this rank gives of a state; on CUDA the stream is asked to, and the host goes on."""
        views = {name: box_views(tensors[name].detach(), boxes) for name, boxes in self.share.boxes.items()}
        for place, source in self.share.whole.items():
            to.cells[place].copy_(views[source.name][source.number][source.index], non_blocking=self._on_cuda)
        for (source, _, _), part in zip(self.share.gives, self._parts):
            part.copy_(views[source.name][source.number][source.index], non_blocking=self._on_cuda)
        if self._on_cuda:
            self._copied = torch.cuda.current_stream().record_event()

    def assemble(self, axis: Axis, to: HostCells) -> None:
        """Wait for the copies and let the loose parts travel; all ranks of `axis` must call it. After it the own cells are whole."""
        if self._copied is not None:
            self._copied.synchronize()
        for trip in self.share.trips:
            sent = self._loose[trip.start : trip.start + sum(trip.send)]
            came = axis.all_to_all(sent, trip.send, trip.receive, "parts")
            for place, index, offset in trip.takes:
                target = to.cells[place][index]
                target.copy_(_as(came, offset, target.dtype, tuple(target.shape)))


def _parts(cells: Sequence[Cell], owner: int, giver: int) -> list[tuple[Cell, Box]]:
    return [(cell, part.box) for cell in cells if cell.owner == owner for part in cell.parts if part.giver == giver]


def _offsets(sizes: Sequence[int], align: int) -> list[int]:
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end = -(-(end + size) // align) * align
    return offsets


def _room(n_bytes: int, pinned: bool) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned).fill_(0)


def _as(room: Tensor, start: int, dtype: torch.dtype, sizes: tuple[int, ...]) -> Tensor:
    """A part of `room` as a tensor."""
    n_bytes = torch.Size(sizes).numel() * dtype.itemsize
    return room[start : start + n_bytes].view(dtype).view(sizes)
