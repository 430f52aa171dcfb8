"""A training state carried through memory from one layout to any other, on more or fewer ranks, when some of the old ranks are gone.

Between two steps the processes that stay still have what they held: each is a *source* of an old rank's state, its own or a copy it keeps for a peer
(`peer_copies.py`). The boxes of the old layout (`placement.py`) tile every tensor, and so do those of the new one; each overlap of the two is a
*piece*, which one source gives and one new rank needs.

    plan     for every piece a giver: the rank that needs it if it has it, else one on its node, else any; of equals the one with least to give so far
    missing  the old boxes that no source has, known before anything is moved
    carry    pieces that stay are copied; the others travel packed, in rounds in none of which a rank sends or receives more than `ROUND` bytes

The plan is a pure function of layouts, placements and sources: every rank makes the same one, and nothing about it is sent. Every number arrives bit
for bit. Replicas share the giving, so a state that one newcomer lacks comes from all that have it.

Cost: planning, some microseconds for each overlap of each distinct pair of placements and for each piece that travels (about 10 ms for 108 tensors
on 8 ranks); moving, the bytes that a rank lacks, once, and room for a round's. The old and the new state are in memory at the same time. When not to
use it: where something is missing (then a snapshot serves), or where shapes differ (`engine/transition.py` knows what becomes of rows of nodes).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from penstock.comm import Axis
from penstock.parallel.layout import Layout
from penstock.parallel.placement import Box, Placement, common, inside

#: Bytes that a rank sends or receives at most in a round, numbers in a piece that travels, and bytes that a piece begins at a multiple of.
ROUND, PIECE, ALIGN = 1 << 25, 1 << 22, 8

#: Where something begins in each dim of a tensor.
Offsets = tuple[int, ...]
#: Which of some copies.
Numbers = tuple[int, ...]
#: What no source has: a tensor's name, and a box of the full tensor.
Missing = tuple[str, Box]


@dataclass(frozen=True)
class Copy:
    """Of old rank `rank`, the tensors `names`, kept by new rank `at`."""

    rank: int
    at: int
    names: frozenset[str]


@dataclass(frozen=True)
class Piece:
    """A part of a tensor, from what old rank `source` held (new rank `giver` has it) to what new rank `target` is to hold; offsets in those."""

    sizes: tuple[int, ...]
    source: int
    giver: int
    out_of: Offsets
    target: int
    into: Offsets

    @cached_property
    def numel(self) -> int:
        """Elements in the piece."""
        return torch.Size(self.sizes).numel()

    def taken(self, tensor: Tensor) -> Tensor:
        """The piece as a view of the source's local tensor."""
        return tensor.detach()[_index(self.out_of, self.sizes)]

    def put(self, tensor: Tensor) -> Tensor:
        """The piece as a view of the target's local tensor."""
        return tensor.detach()[_index(self.into, self.sizes)]


@dataclass(frozen=True)
class TransitionPlan:
    """Of every tensor the pieces to be moved, the largest tensors first, and what no source has."""

    moves: tuple[tuple[str, tuple[Piece, ...]], ...]
    missing: tuple[Missing, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        moves = {name: [asdict(piece) for piece in pieces] for name, pieces in self.moves}
        return {"moves": moves, "missing": [{"name": name, **asdict(box)} for name, box in self.missing]}

    def travelling(self) -> Iterable[tuple[str, Piece]]:
        """The pieces whose giver is not their target, in the order in which they travel."""
        return ((name, piece) for name, pieces in self.moves for piece in pieces if piece.giver != piece.target)


def placed(tensors: Mapping[str, Tensor], placements: Mapping[str, Placement]) -> dict[str, Placement]:
    """A placement for every tensor; one that has none is whole on every rank."""
    return {name: placements.get(name) or Placement(tuple(tensor.shape)) for name, tensor in tensors.items()}


def find_missing(
    old_layout: Layout, before: Mapping[str, Placement], sources: Mapping[int, Collection[int]], copies: Sequence[Copy] = ()
) -> tuple[Missing, ...]:
    """The boxes of a state that no source has; arguments as for `plan_transition`. It asks nothing about what comes after."""
    lost: dict[tuple[Placement, Numbers], list[Box]] = {}
    found: list[Missing] = []
    for name, placement in before.items():
        alike = placement, _copies_of(name, copies)
        if alike not in lost:
            givers = _givers(sources, copies, alike[1])
            lost[alike] = [box for box, holders in holders_of(placement, old_layout).items() if not any(givers.get(rank) for rank, _ in holders)]
        found += [(name, box) for box in lost[alike]]
    return tuple(found)


def plan_transition(
    old_layout: Layout,
    before: Mapping[str, Placement],
    new_layout: Layout,
    after: Mapping[str, Placement],
    sources: Mapping[int, Collection[int]],
    copies: Sequence[Copy] = (),
    nodes: Sequence[int] = (),
) -> TransitionPlan:
    """How a state placed as `before` on `old_layout` becomes one placed as `after` on `new_layout`; the same on all ranks.

    Every tensor has a placement (`placed`). `sources`: for each old rank the new ranks that have all its tensors; `copies`: those that have some
    of them. `nodes`: the new ranks' nodes; empty: all are on one. What only `before` names is left out; what only `after` names, or names with
    another full shape, is missing whole.
    """
    fitting = [name for name, placement in after.items() if name in before and before[name].shape == placement.shape]
    missing = [(name, Box((0,) * len(after[name].shape), after[name].shape)) for name in after if name not in set(fitting)]
    missing += find_missing(old_layout, {name: before[name] for name in fitting}, sources, copies)
    alike: dict[tuple[Placement, Placement, Numbers], list[str]] = defaultdict(list)
    for name in sorted(fitting, key=lambda name: (-torch.Size(after[name].shape).numel(), name)):
        alike[before[name], after[name], _copies_of(name, copies)].append(name)
    burden: dict[int, int] = defaultdict(int)
    moves = []
    for (old, new, kept), names in alike.items():
        ways = _ways(holders_of(old, old_layout), holders_of(new, new_layout), _givers(sources, copies, kept), nodes)
        moves += [(name, tuple(_least_burdened(way, burden) for way in ways)) for name in names]
    return TransitionPlan(tuple(moves), tuple(missing))


@torch.no_grad()
def carry(plan: TransitionPlan, held: Mapping[int, Mapping[str, Tensor]], new: Mapping[str, Tensor], axis: Axis) -> None:
    """Fill this rank's `new` tensors, which share no memory with what is held; what is missing stays as it was.

    `held`: of every old rank of which this one is a source, its tensors by name, in the same formats. All new ranks must call it; `axis` is all of
    them in order, and every rank has all names.
    """
    here, ranks = axis.index, range(axis.size)
    for name, pieces in plan.moves:
        for piece in pieces:
            if piece.giver == piece.target == here:
                piece.put(new[name]).copy_(piece.taken(held[piece.source][name]))
    device = next(iter(new.values())).device if new else torch.device("cpu")
    for trip in _rounds(plan, {name: tensor.dtype for name, tensor in new.items()}):
        send, receive = [trip.n_bytes(here, rank) for rank in ranks], [trip.n_bytes(rank, here) for rank in ranks]
        flat = torch.empty(sum(send), dtype=torch.uint8, device=device)
        for name, piece, room in trip.between(flat, [(here, rank) for rank in ranks]):
            source = held[piece.source][name]
            assert source.dtype == room.dtype, f"{name} was {source.dtype} and is to be {room.dtype}"
            room.copy_(piece.taken(source))
        came = axis.all_to_all(flat, send, receive, "transition")
        for name, piece, room in trip.between(came, [(rank, here) for rank in ranks]):
            piece.put(new[name]).copy_(room)


class _Trip:
    """What travels in one round, by giver and target."""

    def __init__(self, dtypes: Mapping[str, torch.dtype]) -> None:
        self._dtypes = dtypes
        self._pieces: dict[tuple[int, int], list[tuple[str, Piece]]] = defaultdict(list)
        self._out: dict[int, int] = defaultdict(int)
        self._in: dict[int, int] = defaultdict(int)

    def takes(self, name: str, piece: Piece) -> bool:
        """Whether the piece has room in this round; if so it travels in it."""
        n_bytes, given, got = self._room(name, piece), self._out[piece.giver], self._in[piece.target]
        if (given and given + n_bytes > ROUND) or (got and got + n_bytes > ROUND):
            return False
        self._out[piece.giver], self._in[piece.target] = given + n_bytes, got + n_bytes
        self._pieces[piece.giver, piece.target].append((name, piece))
        return True

    def n_bytes(self, giver: int, target: int) -> int:
        """Bytes from one rank to another."""
        return sum(self._room(name, piece) for name, piece in self._pieces.get((giver, target), ()))

    def between(self, flat: Tensor, pairs: Iterable[tuple[int, int]]) -> Iterable[tuple[str, Piece, Tensor]]:
        """The pieces that travel between pairs (giver, target), and each one's view of the message `flat` in which they lie one after the other."""
        start = 0
        for pair in pairs:
            for name, piece in self._pieces.get(pair, ()):
                dtype = self._dtypes[name]
                yield name, piece, flat[start : start + piece.numel * dtype.itemsize].view(dtype).view(piece.sizes)
                start += self._room(name, piece)

    def _room(self, name: str, piece: Piece) -> int:
        return -(-piece.numel * self._dtypes[name].itemsize // ALIGN) * ALIGN


def _rounds(plan: TransitionPlan, dtypes: Mapping[str, torch.dtype]) -> list[_Trip]:
    trips: list[_Trip] = []
    for name, piece in plan.travelling():
        if not trips or not trips[-1].takes(name, piece):
            trips.append(_Trip(dtypes))
            trips[-1].takes(name, piece)
    return trips


@lru_cache(maxsize=4096)
def holders_of(placement: Placement, layout: Layout) -> dict[Box, list[tuple[int, Offsets]]]:
    """The distinct boxes of a placement, and for each the ranks that hold it and where it begins in their tensors. Two are equal or apart."""
    found: dict[Box, list[tuple[int, Offsets]]] = {}
    for rank in range(layout.ranks):
        start = 0
        for box in placement.boxes(layout, rank):
            if box.numel:
                found.setdefault(box, []).append((rank, (start, *(0 for _ in box.sizes[1:])) if box.sizes else ()))
            start += box.sizes[0] if box.sizes else 0
    return found


def _copies_of(name: str, copies: Sequence[Copy]) -> Numbers:
    """Which of the copies have a tensor."""
    return tuple(number for number, copy in enumerate(copies) if name in copy.names)


def _givers(sources: Mapping[int, Collection[int]], copies: Sequence[Copy], kept: Numbers) -> dict[int, list[int]]:
    """For each old rank the new ranks that have a tensor of it, which the copies `kept` have."""
    givers = {rank: sorted(at) for rank, at in sources.items()}
    for number in kept:
        givers.setdefault(copies[number].rank, []).append(copies[number].at)
    return givers


def _ways(
    before: Mapping[Box, list[tuple[int, Offsets]]],
    after: Mapping[Box, list[tuple[int, Offsets]]],
    givers: Mapping[int, Sequence[int]],
    nodes: Sequence[int],
) -> list[list[Piece]]:
    """For each part that a new rank needs of tensors placed so, the pieces of which one will do, none of them farther than another."""
    found = []
    for old, holders in before.items():
        have = {at: (rank, start) for rank, start in reversed(holders) for at in reversed(givers.get(rank, ()))}
        for new, targets in after.items() if have else ():
            shared = common(old, new)
            for target, start in targets if shared else ():
                assert shared is not None
                near = [target] if target in have else [at for at in have if nodes and nodes[at] == nodes[target]] or list(have)
                for part in [shared] if near == [target] else _small(shared):
                    sides = [(at, have[at][0], _shifted(part, old, have[at][1])) for at in sorted(near)]
                    into = _shifted(part, new, start)
                    found.append([Piece(part.sizes, rank, at, out_of, target, into) for at, rank, out_of in sides])
    return found


def _least_burdened(way: list[Piece], burden: dict[int, int]) -> Piece:
    """The piece whose giver has least to give so far; counted, if it travels."""
    piece = way[0] if len(way) == 1 else min(way, key=lambda piece: burden[piece.giver])
    if piece.giver != piece.target:
        burden[piece.giver] += piece.numel
    return piece


def _small(box: Box) -> list[Box]:
    """A box cut, along its longest dim first, into ones of no more than `PIECE` numbers."""
    if box.numel <= PIECE:
        return [box]
    dim = box.sizes.index(max(box.sizes))
    half = box.sizes[dim] // 2
    first = Box(box.offsets, (*box.sizes[:dim], half, *box.sizes[dim + 1 :]))
    offsets = (*box.offsets[:dim], box.offsets[dim] + half, *box.offsets[dim + 1 :])
    return _small(first) + _small(Box(offsets, (*box.sizes[:dim], box.sizes[dim] - half, *box.sizes[dim + 1 :])))


def _shifted(part: Box, of: Box, start: Offsets) -> Offsets:
    """Where a part of box `of` begins in a tensor in which that begins at `start`."""
    return tuple(place.start + begin for place, begin in zip(inside(part, of), start))


def _index(offsets: Offsets, sizes: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(offsets, sizes))
