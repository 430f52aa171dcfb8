"""The state of the last complete step, taken up by the ranks of a new generation from those that have it in memory.

Every member says which step's state it has; the newest counts. Each rank builds itself anew for the layout, copies what it has of its own place, and
says whether that was all. Then every tensor goes, within the ranks that hold the same piece of it, from the first that had it to those that had
not (a newcomer, or one a step behind). So a rank keeps its state whatever happens to the others meanwhile: what is sent to one that has it is what
it has, bit for bit.

Where some piece is with nobody (a shard without replica is lost, or the layout cuts otherwise than before) there is nothing to go on with in memory,
and the newest snapshot serves.

Cost: the state twice in memory while it is copied, and a broadcast of what newcomers lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.comm import World
from penstock.config import Config
from penstock.data import TokenCorpus
from penstock.engine.build import Parts, batch_plan, build_core, whole_parts
from penstock.engine.control import StopRequest
from penstock.engine.journal import Journal
from penstock.engine.saving import Saving, note_choices
from penstock.engine.state import Progress
from penstock.engine.survive.wire import Status
from penstock.parallel import Layout, Placement
from penstock.store import Damaged, Manifest, Run, agreed_manifest, list_snapshots


@dataclass(frozen=True)
class Held:
    """What a rank of an earlier generation has: the state of a step, and where its tensors lay."""

    tensors: dict[str, Tensor]
    placements: dict[str, Placement]
    layout: Layout
    rank: int
    progress: Progress


def held_of(parts: Parts) -> Held | None:
    """The state of a rank whose generation has ended; None where it is that of no step."""
    if parts.torn:
        return None
    note_choices(parts)
    tensors = {name: tensor.detach() for name, tensor in parts.tensors().items()}
    return Held(tensors, parts.placements(), parts.layout, parts.world.rank, parts.progress)


def take_up(
    run: Run, config: Config, world: World, corpus: TokenCorpus, stop: StopRequest, journal: Journal, held: Held | None, statuses: Sequence[Status]
) -> Parts | None:
    """This rank's parts with the newest state that the members, one for each of `statuses`, have; None on all ranks if it is not all there."""
    step = max(status.step for status in statuses)
    if step < 0:
        return None
    saved = next(status for status in statuses if status.step == step)
    progress = Progress(**saved.numbers)
    core = build_core(config, world, batch_plan(config, corpus, progress), stop, journal.warn, progress, fresh=False)
    own = held if held is not None and held.progress.step == step else None
    copied = own is not None and _copy(own, core.tensors(), core.placements(), core.layout, core.world.rank)
    sources = [bool(has) for has in core.world.gather_numbers(float(copied), "sources")]
    placements, names = core.placements(), sorted(core.tensors())
    if not all(_covered(placements.get(name), core.layout, sources) for name in names):
        return None
    parts = whole_parts(core, run, corpus, journal, Saving(run, config, core.world, _newest(run, core.world)))
    parts.progress, parts.torn = progress, True
    _spread(parts, names, placements, sources)
    parts.torn = False
    if core.tuner.settled:
        parts.compile(journal.warn)
    parts.saving.prepare(parts)
    return parts


@torch.no_grad()
def _copy(own: Held, tensors: dict[str, Tensor], placements: dict[str, Placement], layout: Layout, rank: int) -> bool:
    """Fill this rank's new tensors with what it has; return whether that is the same pieces of the same tensors."""
    if own.tensors.keys() != tensors.keys():
        return False
    for name, tensor in tensors.items():
        before, after = own.placements.get(name), placements.get(name)
        same = before.boxes(own.layout, own.rank) == after.boxes(layout, rank) if before and after else before is after
        if not same or own.tensors[name].shape != tensor.shape:
            return False
    for name, tensor in tensors.items():
        tensor.detach().copy_(own.tensors[name])
    return True


def _covered(placement: Placement | None, layout: Layout, sources: Sequence[bool]) -> bool:
    """Whether every rank's piece of a tensor is with some source."""
    if placement is None:
        return any(sources)
    return all(any(sources[r] for r in placement.replica_ranks(layout, rank)) for rank in range(layout.ranks))


@torch.no_grad()
def _spread(parts: Parts, names: Sequence[str], placements: dict[str, Placement], sources: Sequence[bool]) -> None:
    """Give every rank that is no source its pieces, each from the first source that has it."""
    tensors = parts.tensors()
    for name in names:
        axis = parts.mesh.replicas(placements[name]) if name in placements else parts.world.axis
        if all(sources[rank] for rank in axis.ranks):
            continue
        place = next(place for place, rank in enumerate(axis.ranks) if sources[rank])
        sent = tensors[name].detach().to(parts.world.device, copy=True).contiguous()
        axis.broadcast(sent, place, "recovery")
        if not sources[parts.world.rank]:
            tensors[name].detach().copy_(sent)
    parts.laid.sharder.reshard()


def _newest(run: Run, world: World) -> Manifest | None:
    """The newest snapshot that is not damaged, for the next to follow."""
    for snapshot in reversed(list_snapshots(run.folder)):
        try:
            return agreed_manifest(snapshot, world)
        except Damaged:
            continue
    return None
