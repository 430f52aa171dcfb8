"""A state taken up from memory by the ranks of a new generation: the newest that is whole among what they have.

    held_of    what a process keeps of the generation that has ended: its part of the last complete step, and copies of an earlier one
    choose     every member says which states it has a part of; the newest of which every piece is with somebody
    take_up    each rank builds itself anew for the layout and the number of ranks that there are now, and the state is carried to it

The old state may have lain on any layout of any number of ranks (`engine/transition.py`). It is kept until all ranks have the new one, so a rank that
is lost meanwhile costs nothing more: whoever has gone ahead has both. Where some piece of every state is with nobody there is nothing to go on
with in memory, and the newest snapshot serves.

Cost: the state twice in memory while it is carried, and what newcomers lack over the network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from penstock.comm import World
from penstock.config import Config
from penstock.data import TokenCorpus
from penstock.engine.build import Parts, batch_plan, build_core, whole_parts
from penstock.engine.control import StopRequest
from penstock.engine.record.journal import Journal
from penstock.engine.saving import Saving, note_choices
from penstock.engine.state import Progress
from penstock.engine.survive.wire import Offer, Status
from penstock.engine.transition import StateMap, carry_state
from penstock.parallel import Copy
from penstock.store import Damaged, Manifest, Run, agreed_manifest, list_snapshots


@dataclass(frozen=True)
class Held:
    """What a process has of a state that lay on the ranks of generation `era`, of which it was `rank`: that rank's tensors, and some of others'."""

    era: int
    rank: int
    where: StateMap
    progress: Progress
    tensors: dict[int, dict[str, Tensor]]

    @property
    def offer(self) -> Offer:
        """As it is said to the others."""
        kept = {rank: sorted(tensors) for rank, tensors in self.tensors.items() if rank != self.rank and tensors}
        return Offer(*self.state, self.rank, kept)

    @cached_property
    def state(self) -> tuple[int, int, str]:
        """Which state it is a part of: step, generation, and a digest of where it lies."""
        lies = json.dumps(self.where.as_dict(), sort_keys=True)
        return self.progress.step, self.era, hashlib.sha256(lies.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Chosen:
    """The state to go on with: its plain numbers, where it lay, who has it now, and this rank's part of it."""

    progress: Progress
    where: StateMap
    sources: dict[int, tuple[int, ...]]
    copies: tuple[Copy, ...]
    held: dict[int, dict[str, Tensor]]


def held_of(parts: Parts, era: int, handed: dict[int, dict[str, Tensor]]) -> list[Held]:
    """The states of which a rank of generation `era`, which has ended, has a part; its own is none where an update was cut off in the middle.

    `handed`: what it keeps of the same state for ranks that leave.
    """
    rank, found = parts.world.rank, []
    if not parts.torn:
        note_choices(parts)
        tensors = {name: tensor.detach() for name, tensor in parts.tensors().items()}
        found.append(Held(era, rank, StateMap.of(parts), parts.progress, {rank: tensors, **handed}))
    for progress, kept in parts.peers.held():
        assert parts.peers.where is not None
        if found and (found[0].progress.step, found[0].where) == (progress.step, parts.peers.where):
            kept = kept | found.pop(0).tensors
        found.append(Held(era, rank, parts.peers.where, progress, kept))
    return found


def choose(world: World, statuses: Sequence[Status], held: Sequence[Held]) -> Chosen | None:
    """The newest state that the members, one for each of `statuses`, have among them whole; the same on all ranks, which must call it."""
    offers = [(at, offer) for at, status in enumerate(statuses) for offer in status.offers]
    for state in sorted({(offer.step, offer.era, offer.where) for _, offer in offers}, reverse=True):
        parts = [(at, offer) for at, offer in offers if (offer.step, offer.era, offer.where) == state]
        sources: dict[int, tuple[int, ...]] = {offer.rank: (at,) for at, offer in parts}
        copies = tuple(Copy(rank, at, frozenset(names)) for at, offer in parts for rank, names in offer.kept.items())
        own = next((one for one in held if one.state == state), None)
        teller = parts[0][0]
        where = StateMap.shared(own.where if own else None, world, teller)
        if not where.missing(sources, copies):
            numbers = _shared(own.progress.numbers() if own else {}, world, teller)
            return Chosen(Progress(**numbers), where, sources, copies, own.tensors if own else {})
    return None


def take_up(run: Run, config: Config, world: World, corpus: TokenCorpus, stop: StopRequest, journal: Journal, chosen: Chosen) -> Parts | None:
    """This rank's parts with the chosen state; None on all ranks if that has not all that the config asks for."""
    core = build_core(config, world, batch_plan(config, corpus, chosen.progress), stop, journal.warn, chosen.progress, fresh=False)
    if carry_state(core, chosen.where, chosen.held, chosen.sources, chosen.copies):
        return None
    parts = whole_parts(core, run, corpus, journal, Saving(run, config, core.world, _newest(run, core.world)))
    parts.progress = chosen.progress
    if core.tuner.settled:
        parts.compile(journal.warn)
    parts.saving.prepare(parts)
    return parts


def _shared(numbers: dict[str, Any], world: World, source: int) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(world.share(json.dumps(numbers), source))
    return told


def _newest(run: Run, world: World) -> Manifest | None:
    """The newest snapshot that is not damaged, for the next to follow."""
    for snapshot in reversed(list_snapshots(run.folder)):
        try:
            return agreed_manifest(snapshot, world)
        except Damaged:
            continue
    return None
