"""Copies of the state in other ranks' memory while a run trains: `survive.copies`.

Every `every` steps each rank copies its state to its host's memory and sends what no replica has to the next rank (`parallel/peer_copies.py`). When
a rank is lost whose shard nobody else has, all go back to the newest copied step, at most `every` steps, and no snapshot is read: the lost rank's
part comes from its keeper, every other rank's from its own copy.

    after a step       keep, when due
    after a recovery   keep at once, as copies of the ranks before are no use to the new ones

Memory of the host: two copies of each rank's state, and two of what it keeps of its neighbour. With float32, AdamW and ZeRO 3 that is up to
48 bytes times the parameters over the ranks. Time: a copy of the state and the sending of what has no replica, `copies_s` of a step.
When not to use it: where every piece has a replica, and the optimizer exchanges nothing while it updates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from penstock.engine.saving import note_choices
from penstock.engine.state import Progress
from penstock.engine.transition import StateMap
from penstock.parallel import PeerCopies

if TYPE_CHECKING:
    from penstock.engine.build import Parts


class Peers:
    """The copies of one rank, made every so many steps; 0: never."""

    def __init__(self, every: int = 0) -> None:
        self.every = every
        self.where: StateMap | None = None
        self._copies: PeerCopies | None = None
        self._progress: dict[int, Progress] = {}

    def after_step(self, parts: Parts) -> None:
        """Keep the state, if that is due. All ranks must call it."""
        if self.every and parts.progress.step % self.every == 0:
            self.keep(parts)

    def keep(self, parts: Parts) -> None:
        """Keep the state of the current step, if copies are kept at all. All ranks must call it."""
        if not self.every or parts.world.size == 1:
            return
        with parts.timer.phase("copies"):
            tensors, where, step = parts.tensors(), StateMap.of(parts), parts.progress.step
            if self._copies is None or where != self.where:
                self._make(parts, tensors, where)
            assert self._copies is not None
            note_choices(parts)
            self._progress[step] = _numbers(parts.progress)
            self._copies.keep(step, tensors)
            self._progress = {kept: self._progress[kept] for kept in self._copies.steps}

    def keep_anew(self, parts: Parts) -> None:
        """Forget the steps before, to which nobody may go back as they had other settings, and keep this one. All ranks must call it."""
        self._copies = None
        self.keep(parts)

    def held(self) -> list[tuple[Progress, dict[int, dict[str, Tensor]]]]:
        """Of every step that is whole here its plain numbers, and by rank the tensors."""
        copies = self._copies
        return [(self._progress[step], copies.held(step)) for step in copies.steps] if copies else []

    def _make(self, parts: Parts, tensors: dict[str, Tensor], where: StateMap) -> None:
        if self._copies is None:
            self._copies = PeerCopies(tensors, where.placements, where.layout, parts.world.axis)
            size = max(parts.world.gather_numbers(self._copies.n_bytes, "copies"))
            parts.journal.say(f"copies of the state every {self.every} step{'s' * (self.every > 1)}, {size / 1e6:,.1f} MB of memory on each rank")
        else:
            self._copies = None  # both at once might be too much
            self._copies = PeerCopies(tensors, where.placements, where.layout, parts.world.axis)
        self.where, self._progress = where, {}


def _numbers(progress: Progress) -> Progress:
    """The numbers as they are now, whatever is added to its lists."""
    return replace(progress, evals=list(progress.evals), recoveries=list(progress.recoveries))
