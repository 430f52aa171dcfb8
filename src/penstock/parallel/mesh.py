"""The mesh: a layout brought to life, with a process group for every set of axes that is asked for.

`mesh.axis("row")`, `mesh.axis("replicate", "shard")` … return the `Axis` of the ranks that differ from this one on those axes only, in
order of their places. Groups are made on first use, by all ranks in the same order (every rank runs the same code), and one group serves all
axes, and all meshes of a world, with the same ranks.

Cost: making a group is a rendezvous of all ranks, milliseconds each on one host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from penstock.comm import Axis, Links, Receiver, Route, Sender, World
from penstock.parallel.layout import Layout
from penstock.parallel.placement import Placement


class Mesh:
    """The ranks of `world` in the form of `layout`."""

    def __init__(self, layout: Layout, world: World, timeout_s: float = 600.0) -> None:
        assert layout.ranks == world.size, f"{layout} has {layout.ranks} ranks, the world {world.size}"
        self.layout, self.world = layout, world
        self._timeout = timedelta(seconds=timeout_s)
        self._axes: dict[tuple[str, ...], Axis] = {}

    def axis(self, *axes: str) -> Axis:
        """The axis that runs over the named axes, outermost first."""
        if axes not in self._axes:
            wanted = tuple(axis for axis in axes if self.layout.size(axis) > 1)
            ranks = self.layout.group(self.world.rank, wanted)
            assert list(ranks) == sorted(ranks), f"name axes outermost first, not {axes}: process groups are in order of rank"
            self._axes[axes] = self._axis(_name(wanted), ranks, self._group(lambda rank: self.layout.group(rank, wanted)))
        return self._axes[axes]

    def route(self, placement: Placement) -> Route:
        """The way of the sum over the ranks that hold the same piece of a tensor as this one: inside the node, then between nodes.

        Sums between nodes go beside other collectives, so every leg has process groups of its own.
        """
        layout, rank = self.layout, self.world.rank
        if "node" not in placement.replicas(layout):
            return Route(self.replicas(placement))

        def on_node(rank: int) -> tuple[int, ...]:
            node = layout.coordinate(rank, "node")
            return tuple(r for r in placement.replica_ranks(layout, rank) if layout.coordinate(r, "node") == node)

        axes = tuple(axis for axis in placement.replicas(layout) if axis != "node")
        inside, back = (self._axis(_name(axes, placement), on_node(rank), self._group(on_node, leg)) for leg in ("scatter", "gather"))
        ranks = layout.group(rank, ("node",))
        return Route(inside, self._axis("node", ranks, self._group(lambda r: layout.group(r, ("node",)), "between")), back)

    def replicas(self, placement: Placement) -> Axis:
        """The axis of the ranks that hold the same piece of a tensor as this one."""
        layout, rank = self.layout, self.world.rank
        if len(placement.holders) < 2:
            return self.axis(*placement.replicas(layout))
        ranks = placement.replica_ranks(layout, rank)
        return self._axis(_name(placement.replicas(layout), placement), ranks, self._group(lambda r: placement.replica_ranks(layout, r)))

    def device_mesh(self, *axes: str) -> DeviceMesh:
        """The axis as torch's one-dimensional DeviceMesh, for FSDP2."""
        axis = self.axis(*axes)
        assert axis.group is not None, "an axis of one rank shards nothing"
        return DeviceMesh.from_group(axis.group, self.world.device.type, mesh_dim_names=(axis.name,))

    def links(self, pairs: Iterable[tuple[int, int]]) -> Links:
        """This rank's links along the pipeline for pairs (from, to) of places on it; all ranks must ask for the same ones in the same order."""
        layout, world = self.layout, self.world
        here, stride = layout.coordinate(world.rank, "pipeline"), layout.stride("pipeline")
        senders, receivers = {}, {}
        for source, target in pairs:
            for origin in range(stride):
                ends = (origin + source * stride, origin + target * stride)
                key = ("link", *ends)
                if key not in world.groups:
                    world.groups[key] = dist.new_group(list(ends), timeout=self._timeout)
                if world.rank == ends[0]:
                    senders[target] = Sender(ends[1], world.groups[key], world.meter, "pipeline.activations", self._far(*ends))
                if world.rank == ends[1]:
                    receivers[source] = Receiver(ends[0], world.groups[key])
        assert here not in senders and here not in receivers, "a rank needs no link to itself"
        return Links(senders, receivers)

    def _axis(self, name: str, ranks: tuple[int, ...], group: dist.ProcessGroup | None) -> Axis:
        world = self.world
        return Axis(name, ranks, ranks.index(world.rank), group, world.meter, tuple(world.nodes[r] for r in ranks) if world.nodes else ())

    def _far(self, source: int, target: int) -> bool:
        return bool(self.world.nodes) and self.world.nodes[source] != self.world.nodes[target]

    def _group(self, ranks_of: Callable[[int], tuple[int, ...]], use: str = "") -> dist.ProcessGroup | None:
        """This rank's process group, of the ranks that `ranks_of` gives each rank; every rank makes all groups it does not know of.

        One with a `use` serves that alone; the others, whatever the collectives of the main thread.
        """
        groups, mine = self.world.groups, ranks_of(self.world.rank)
        for ranks in dict.fromkeys(ranks_of(rank) for rank in range(self.world.size)):
            key: tuple[int | str, ...] = (use, *ranks) if use else ranks
            if len(ranks) > 1 and (use or len(ranks) < self.world.size) and key not in groups:
                groups[key] = dist.new_group(list(ranks), timeout=self._timeout)
        return None if len(mine) == 1 else groups.get((use, *mine) if use else mine, dist.group.WORLD)


def _name(axes: tuple[str, ...], placement: Placement | None = None) -> str:
    tied = placement is not None and len(placement.holders) > 1
    return "_".join((("tied",) if tied else ()) + axes) or "none"
