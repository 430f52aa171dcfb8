"""Taking up a snapshot of any layout in any other: each rank fills its boxes, and all agree on whether that went well.

Names and full shapes must be the snapshot's, unless a rule says what becomes of a tensor on other nodes (`when_nodes_change`), or no more than
what fits is asked for (`load_partial`). Every content is checked on the way (`cells/reading.py`); nothing is ever unpickled.

Cost: what `cells/reading.py` costs, and an agreement of all ranks. When not to use it: to look at a snapshot (`manifest.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor

from penstock.comm import World
from penstock.config import UserError
from penstock.parallel import Layout, Placement
from penstock.store.cells.chunks import Damaged
from penstock.store.cells.node_rows import has_other_rows, read_rows
from penstock.store.cells.reading import local_boxes, read_boxes
from penstock.store.snapshots.manifest import Manifest, Snapshot, list_snapshots, read_manifest

_Result = TypeVar("_Result")


def load_snapshot(
    snapshot: Snapshot,
    tensors: dict[str, Tensor],
    world: World | None = None,
    placements: dict[str, Placement] | None = None,
    layout: Layout | None = None,
    when_nodes_change: Callable[[str], str] = lambda name: "",
) -> dict[str, Any]:
    """Fill `tensors`, placed as in `save_snapshot`, in place from a snapshot of any layout, and return its plain numbers.

    `when_nodes_change` says of tensors that may have a row for every node what becomes of other rows than are wanted: each gets its part of their
    "sum", or their "mean"; or is "zero" if the shape differs in any way. Of those whose name begins with `exchange.`, one that is not there is zero,
    and one that is only there is left out.

    All ranks of `world` (default: this process alone) must call it. Raises on every rank `Damaged` when the snapshot is, and `UserError`, naming the
    tensor, when a name or full shape differs from what it holds.
    """
    world = world or World()
    manifest = agreed_manifest(snapshot, world)
    state = local_boxes(tensors, placements or {}, layout or Layout(replicate=world.size), world.rank)
    stored = {name: entry.shape for name, entry in manifest.tensors.items()}
    other = {name: local for name, local in state.items() if has_other_rows(stored.get(name), local.shape, name, when_nodes_change(name))}
    ours = {name: local for name, local in state.items() if name not in other}
    strict = {name: shape for name, shape in stored.items() if name in ours or not (name in other or name.startswith("exchange."))}
    _check_same(strict, {name: local.shape for name, local in ours.items()}, snapshot)

    def read() -> None:
        read_boxes(snapshot.folder, manifest, ours)
        read_rows(snapshot.folder, manifest, other, when_nodes_change)

    _together(read, snapshot, world)
    return manifest.numbers


def load_partial(
    snapshot: Snapshot,
    tensors: dict[str, Tensor],
    world: World | None = None,
    placements: dict[str, Placement] | None = None,
    layout: Layout | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """As `load_snapshot`, but tensors whose name or shape does not fit are left as they are; returns the numbers, and those tensors' names.

    What only the snapshot has is left out.
    """
    world = world or World()
    manifest = agreed_manifest(snapshot, world)
    state = local_boxes(tensors, placements or {}, layout or Layout(replicate=world.size), world.rank)
    fitting = {name: local for name, local in state.items() if name in manifest.tensors and manifest.tensors[name].shape == local.shape}
    _together(lambda: read_boxes(snapshot.folder, manifest, fitting), snapshot, world)
    return manifest.numbers, sorted(state.keys() - fitting.keys())


def agreed_manifest(snapshot: Snapshot, world: World) -> Manifest:
    """A snapshot's manifest; raises `Damaged` on all ranks, which must all call it, if any cannot read it."""
    return _together(lambda: read_manifest(snapshot), snapshot, world)


def read_numbers(snapshot: Snapshot) -> dict[str, Any]:
    """The plain numbers of a snapshot; raises `Damaged`."""
    return read_manifest(snapshot).numbers


def _check_same(stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], snapshot: Snapshot) -> None:
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            has, needs = stored.get(name, "nothing"), wanted.get(name, "nothing")
            raise UserError(
                f"snapshot {snapshot.path} does not fit this run: {name} is {has} there and {needs} here; "
                "resume with the run's own model and optimizer settings, or start a new run"
            )


def _together(action: Callable[[], _Result], snapshot: Snapshot, world: World) -> _Result:
    """What every rank's `action` gives; raises `Damaged` on all of them when any rank found that the snapshot is."""
    result, why = None, ""
    try:
        result = action()
    except Damaged as error:
        why = str(error)
    if world.any(bool(why), "snapshot"):
        raise Damaged(f"snapshot {snapshot.path} is damaged: {why or 'another rank found so'}{_older(snapshot)}")
    return cast("_Result", result)


def _older(snapshot: Snapshot) -> str:
    older = [s.step for s in list_snapshots(snapshot.folder) if s.step < snapshot.step]
    return f"; the one before it is of step {older[-1]}" if older else "; there is no older one, start a new run"
