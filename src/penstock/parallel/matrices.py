"""Whole matrices for Muon where each rank holds a part: every matrix is made whole on one rank, worked on there, and goes back in parts.

The ranks that share a matrix (those along the axes that cut its rows or columns) share a list of them; of each shape the matrices are dealt
round-robin, so every rank works on its share of the list and none does another's work. One all-to-all brings the parts to the owners and one takes
the results back, `axis.muon` in the meter. Stacks of experts are lists of matrices: cuts along the stack separate matrices and need no
exchange. Where hot experts have several places, the ranks of all places share the list, one place's part goes in and every place gets the
result, so copies of an expert stay the same bits. Other replicas (ranks that differ on no cutting axis) hold the same lists and do the same work.

Cost: a rank sends about n (p - 1) / p elements each way, for n that it holds and p ranks, where gathering every matrix on every rank
would receive n (p - 1) (the "Distributed Muon" of Liu et al., arXiv 2502.16982), and it iterates on 1 / p of the shared matrices. When not to
use it: for what works on each element alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.comm import Axis
from penstock.parallel.layout import Layout
from penstock.parallel.mesh import Mesh
from penstock.parallel.placement import Box, Placement
from penstock.parallel.weights import Weights


class Matrices:
    """The matrices and stacks of matrices among placed tensors; `optim.SharedMatrices` for them."""

    def __init__(self, placements: dict[str, Placement], mesh: Mesh) -> None:
        self._placements, self._mesh = placements, mesh
        self._plans: dict[tuple[object, ...], list[_Round]] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self._placements[name].shape

    def map(self, function: Callable[[Tensor], Tensor], parts: dict[str, Tensor], room: int) -> dict[str, Tensor]:
        """This rank's parts of `function(whole matrices)`, from its parts of those; all ranks call it with the same names, in the same order.

        `function` maps batches (b, m, n) of at most `room` elements (or of one matrix) to as many of the same shape.
        """
        key: tuple[object, ...] = (tuple(parts), room, tuple(self._placements[name].slots for name in parts))
        if key not in self._plans:
            self._plans[key] = list(_plan(list(parts), self._placements, self._mesh, room))
        results = {name: torch.empty_like(part, memory_format=torch.contiguous_format) for name, part in parts.items()}
        for round_ in self._plans[key]:
            round_.run(function, parts, results)
        return results


def shared_matrices(weights: Weights) -> Matrices | None:
    """The matrices among `weights`, or None where no rank needs another's part of one."""
    layout = weights.mesh.layout
    shared = any(sharing_axes(placement, layout) for placement in weights.placements.values() if len(placement.shape) >= 2)
    return Matrices(weights.placements, weights.mesh) if shared else None


@dataclass(frozen=True)
class _Piece:
    """Where a part of a matrix is: on the rank at `place` of the axis, as matrix `row` of its local tensor; `box` is its place in the whole."""

    place: int
    row: int
    box: Box
    #: Whether it is the copy that goes in; others get the result only.
    first: bool


@dataclass(frozen=True)
class _Matrix:
    name: str
    owner: int
    pieces: tuple[_Piece, ...]


class _Round:
    """Matrices of one shape that are exchanged together; the lists of pieces are by the rank on the other side."""

    def __init__(self, axis: Axis, shape: tuple[int, int]) -> None:
        self.axis, self.shape, self.own = axis, shape, 0
        self.give: list[list[tuple[str, int]]] = [[] for _ in axis.ranks]
        self.take: list[list[tuple[int, Box]]] = [[] for _ in axis.ranks]
        self.give_back: list[list[tuple[int, Box]]] = [[] for _ in axis.ranks]
        self.take_back: list[list[tuple[str, int]]] = [[] for _ in axis.ranks]

    def add(self, matrix: _Matrix) -> None:
        """Note what this rank gives and takes for a matrix."""
        for piece in matrix.pieces:
            if piece.place == self.axis.index:
                self.take_back[matrix.owner].append((matrix.name, piece.row))
                if piece.first:
                    self.give[matrix.owner].append((matrix.name, piece.row))
            if matrix.owner == self.axis.index:
                self.give_back[piece.place].append((self.own, piece.box))
                if piece.first:
                    self.take[piece.place].append((self.own, piece.box))
        self.own += matrix.owner == self.axis.index

    def run(self, function: Callable[[Tensor], Tensor], parts: dict[str, Tensor], results: dict[str, Tensor]) -> None:
        """Bring the matrices together, apply `function` to those this rank owns, and take the results back."""
        whole = next(iter(parts.values())).new_empty((self.own, *self.shape))
        _swap(self.axis, _local(parts, self.give), _boxes(whole, self.take), whole)
        done = function(whole) if self.own else whole
        _swap(self.axis, _boxes(done, self.give_back), _local(results, self.take_back), whole)


def _plan(names: list[str], placements: dict[str, Placement], mesh: Mesh, room: int) -> Iterator[_Round]:
    """The rounds in which all matrices of `names` are exchanged, the same on all ranks but for what each gives and takes."""
    lists: dict[tuple[tuple[str, ...], tuple[int, int]], list[str]] = defaultdict(list)
    for name in names:
        rows, cols = placements[name].shape[-2:]
        lists[sharing_axes(placements[name], mesh.layout), (rows, cols)].append(name)
    dealt: dict[tuple[str, ...], int] = defaultdict(int)
    for (axes, shape), alike in lists.items():
        axis = mesh.axis(*axes)
        matrices = []
        for name in alike:
            for pieces in _pieces(placements[name], axis, mesh.layout):
                matrices.append(_Matrix(name, dealt[axes] % axis.size, pieces))
                dealt[axes] += 1
        size = axis.size * max(1, room // max(1, math.prod(shape)))
        for start in range(0, len(matrices), size):
            round_ = _Round(axis, shape)
            for matrix in matrices[start : start + size]:
                round_.add(matrix)
            yield round_


def _pieces(placement: Placement, axis: Axis, layout: Layout) -> list[tuple[_Piece, ...]]:
    """The pieces of each matrix that the ranks of `axis` hold together, in the order of the stack."""
    assert len(placement.shape) in (2, 3), f"a matrix or a stack of them, not {placement.shape}"
    found: dict[int, list[_Piece]] = defaultdict(list)
    seen: set[tuple[int, Box]] = set()
    for place, rank in enumerate(axis.ranks):
        row = 0
        for box in placement.boxes(layout, rank):
            members = range(box.offsets[0], box.offsets[0] + box.sizes[0]) if len(placement.shape) == 3 else (0,)
            part = Box(box.offsets[-2:], box.sizes[-2:])
            for member in members:
                if part.numel:
                    found[member].append(_Piece(place, row, part, (member, part) not in seen))
                    seen.add((member, part))
                row += 1
    return [tuple(found[member]) for member in sorted(found)]


def sharing_axes(placement: Placement, layout: Layout) -> tuple[str, ...]:
    """Axes along which ranks hold parts of the same matrices, outermost first; the expert axis where an expert has several places."""
    n_dims = len(placement.shape)
    axes = {axis for split in placement.splits if split.dim >= n_dims - 2 for axis in split.axes}
    places = [expert for place in placement.slots for expert in place]
    if len(set(places)) < len(places):
        axes.add("expert")
    return tuple(sorted((axis for axis in axes if layout.size(axis) > 1), key=layout.stride, reverse=True))


def _local(tensors: dict[str, Tensor], wanted: list[list[tuple[str, int]]]) -> list[list[Tensor]]:
    return [[tensors[name] if tensors[name].ndim == 2 else tensors[name][row] for name, row in of_rank] for of_rank in wanted]


def _boxes(stack_bmn: Tensor, wanted: list[list[tuple[int, Box]]]) -> list[list[Tensor]]:
    return [[stack_bmn[index][box.slices] for index, box in of_rank] for of_rank in wanted]


def _swap(axis: Axis, sources: list[list[Tensor]], targets: list[list[Tensor]], like: Tensor) -> None:
    """Send the tensors `sources[r]` to each rank r, and fill `targets[s]` with what rank s sent."""
    flat = torch.cat([like.new_empty(0), *(tensor.reshape(-1) for of_rank in sources for tensor in of_rank)])
    send, receive = ([sum(tensor.numel() for tensor in of_rank) for of_rank in side] for side in (sources, targets))
    got = axis.all_to_all(flat, send, receive, "muon")
    into = [tensor for of_rank in targets for tensor in of_rank]
    for tensor, piece in zip(into, got.split([tensor.numel() for tensor in into])):
        tensor.copy_(piece.view(tensor.shape))
