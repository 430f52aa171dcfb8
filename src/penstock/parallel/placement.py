"""Where the pieces of a tensor lie: plans as data, the same arithmetic for initial values, gradients, snapshots and digests.

A `Placement` is a tensor's full shape and the splits that cut it, in the order they are applied. A split cuts a dim of n into parts of
equal size, rounded up to a multiple of `unit`; the last parts may be shorter or empty (whoever computes with them pads). A rank's `Box` is what is
left of the full tensor after all splits, a pure function of the placement and the rank's coordinates. So every rank knows every other's
box, and nothing about shapes is ever sent.

The ranks that agree on a box are its *replicas*: those that differ only on axes that no split names. The rule that holds the house together:

    each replica's gradient is a share of the true one, and the true one is the sum over the replicas.

A replicated norm sees other tokens or heads on each rank, a matrix sees other data: the same rule serves all, so no gradient is
counted twice or forgotten because somebody thought of one axis and not of another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from penstock.parallel.layout import Layout


@dataclass(frozen=True)
class Split:
    """Cut `dim` over `axes`, taken as one axis, outermost first; parts are multiples of `unit` but for the last."""

    dim: int
    axes: tuple[str, ...]
    unit: int = 1


@dataclass(frozen=True)
class Box:
    """A rectangular piece of a full tensor: where it begins in every dim, and its size there."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The piece as an index into the full tensor."""
        return tuple(slice(start, start + size) for start, size in zip(self.offsets, self.sizes))

    @property
    def numel(self) -> int:
        """Elements in the piece."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Placement:
    """Full shape of a tensor and how it is cut.

    `slots`, where experts are placed by hand, gives for each place on the expert axis the experts it holds, instead of an even cut of dim 0.
    `holders` are the pipeline ranks that have it (a tied embedding has two); the others hold an empty piece. Empty: all have it.
    """

    shape: tuple[int, ...]
    splits: tuple[Split, ...] = ()
    slots: tuple[tuple[int, ...], ...] = ()
    holders: tuple[int, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes that cut the tensor."""
        placed = (("pipeline",) if self.holders else ()) + (("expert",) if self.slots else ())
        return placed + tuple(axis for split in self.splits for axis in split.axes)

    def replicas(self, layout: Layout) -> tuple[str, ...]:
        """Axes of size above one along which ranks hold the same box, but for a second pipeline rank that does."""
        return tuple(axis for axis in layout.complement(self.axes) if layout.size(axis) > 1)

    def replica_ranks(self, layout: Layout, rank: int) -> tuple[int, ...]:
        """Ranks that hold the same box as `rank`, itself included, ascending: its gradient is to be summed over them."""
        axes, here = self.replicas(layout), layout.coordinate(rank, "pipeline")
        stages = self.holders if here in self.holders else (here,)
        return tuple(r for stage in stages for r in layout.group(rank + (stage - here) * layout.stride("pipeline"), axes))

    def held_by(self, layout: Layout, rank: int) -> bool:
        """Whether the rank's part of the pipeline has this tensor."""
        return not self.holders or layout.coordinate(rank, "pipeline") in self.holders

    def also(self, *splits: Split) -> Placement:
        """The placement with further splits, applied after the others."""
        return replace(self, splits=(*self.splits, *(s for s in splits if s.axes)))

    def without(self, *axes: tuple[str, ...]) -> Placement:
        """The placement without the splits over exactly these sets of axes."""
        return replace(self, splits=tuple(split for split in self.splits if split.axes not in axes))

    def by_node(self, layout: Layout) -> Placement:
        """Placement of a stack of such tensors, one of every node."""
        splits = tuple(Split(split.dim + 1, split.axes, split.unit) for split in self.splits)
        return replace(self, shape=(layout.node, *self.shape), splits=(Split(0, ("node",)), *splits))

    def shared_by_node(self, layout: Layout) -> Placement:
        """Placement of a stack of such tensors, one of every node, each cut further over the ranks that hold the same piece on its node."""
        return self.by_node(layout).also(Split(1, self._inside(layout)))

    def factor(self, rank: int, layout: Layout) -> Placement:
        """Placement of what has `rank` columns in place of those that a rank holds, cut further over the ranks with the same piece on one node."""
        last = len(self.shape) - 1
        splits = tuple(replace(split, unit=rank) if split.dim == last else split for split in self.splits)
        columns = rank * math.prod(layout.size(*split.axes) for split in splits if split.dim == last)
        return replace(self, shape=(*self.shape[:-1], columns), splits=splits).also(Split(0, self._inside(layout)))

    def _inside(self, layout: Layout) -> tuple[str, ...]:
        return tuple(axis for axis in self.replicas(layout) if axis != "node")

    @property
    def cuttable(self) -> bool:
        """Whether `shared_by_node` can cut it: it has rows, one pipeline rank at most holds it, and it is not placed by hand."""
        return len(self.shape) > 0 and len(self.holders) < 2 and not self.slots

    def boxes(self, layout: Layout, rank: int) -> list[Box]:
        """What `rank` holds of the full tensor: one box, or one for each of its experts' slots, in local order along dim 0."""
        if not self.held_by(layout, rank):
            return [Box((0,) * len(self.shape), (0, *self.shape[1:]))]
        whole = _cut(self.shape, self.splits, layout, rank)
        if not self.slots:
            return [whole]
        mine = self.slots[layout.index(rank, ("expert",))]
        return [Box((expert, *whole.offsets[1:]), (1, *whole.sizes[1:])) for expert in mine]

    def local_shape(self, layout: Layout, rank: int) -> tuple[int, ...]:
        """Shape of the tensor that `rank` holds."""
        boxes = self.boxes(layout, rank)
        return (sum(box.sizes[0] for box in boxes), *boxes[0].sizes[1:]) if self.shape else ()

    def owned(self, layout: Layout, rank: int, turn: int = 0, alone: tuple[str, ...] = ()) -> list[bool]:
        """For each of the rank's boxes, whether this rank is the one that counts for it in sums over all ranks.

        Of the replicas it is number `turn`, so that a burden can be shared among them; those at each place on the axes `alone` have one of their own.
        """
        if not self.held_by(layout, rank):
            return [False]
        here = layout.index(rank, alone)
        replicas = [r for r in self.replica_ranks(layout, rank) if layout.index(r, alone) == here]
        first = replicas.index(rank) == turn % len(replicas)
        if not self.slots:
            return [first]
        place = layout.index(rank, ("expert",))
        before = [expert for earlier in self.slots[:place] for expert in earlier]
        mine = self.slots[place]
        return [first and expert not in before and expert not in mine[:i] for i, expert in enumerate(mine)]


def common(a: Box, b: Box) -> Box | None:
    """What two boxes of one tensor share; None where that is nothing."""
    if a.sizes and (a.offsets[0] >= b.offsets[0] + b.sizes[0] or b.offsets[0] >= a.offsets[0] + a.sizes[0]):
        return None  # most pairs, where many boxes are held against many
    starts = tuple(max(x, y) for x, y in zip(a.offsets, b.offsets))
    ends = (min(x + n, y + m) for x, n, y, m in zip(a.offsets, a.sizes, b.offsets, b.sizes))
    sizes = tuple(end - start for start, end in zip(starts, ends))
    return Box(starts, sizes) if all(size > 0 for size in sizes) else None


def inside(box: Box, of: Box) -> tuple[slice, ...]:
    """The index of a box in a tensor that holds the box `of` around it."""
    return tuple(slice(start - origin, start - origin + size) for start, origin, size in zip(box.offsets, of.offsets, box.sizes))


def part(size: int, parts: int, index: int, unit: int = 1) -> tuple[int, int]:
    """Start and length of part `index` of a dim of `size` cut into `parts`; the last ones may be short or empty."""
    block = padded_part(size, parts, unit)
    start = min(index * block, size)
    return start, min(block, size - start)


def padded_part(size: int, parts: int, unit: int = 1) -> int:
    """Length of a full part: `size` over `parts`, rounded up to a multiple of `unit`."""
    return -(-size // (parts * unit)) * unit


def _cut(shape: tuple[int, ...], splits: tuple[Split, ...], layout: Layout, rank: int) -> Box:
    offsets, sizes = [0] * len(shape), list(shape)
    for split in splits:
        start, length = part(sizes[split.dim], layout.size(*split.axes), layout.index(rank, split.axes), split.unit)
        offsets[split.dim] += start
        sizes[split.dim] = length
    return Box(tuple(offsets), tuple(sizes))
