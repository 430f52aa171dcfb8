"""Snapshots that do not stop training: copied to host memory at a step boundary, written by a background thread of every rank.

    training       save: wait for the last one, copy → … steps go on …
    background     parts travel → each rank hashes, encodes and appends its own cells to its pack → all tell the lead
    lead           → manifest published → history, retention

All ranks call `save` at the same steps, so their threads do the same things in the same order, over a process group of their own. They tell each
other how far they are at least every `TELL_S` seconds: however slow a disk is, no wait comes near the group's deadline, and at it a rank that died is
noticed. A rank that cannot write says so, and those that could not try again, twice, after a pause. Then the snapshot is given up, what was
written of it is removed, and the next one is taken as if this had never been due. No earlier snapshot is ever touched: packs are
new files, and the manifest, written last, is what makes a snapshot.

Memory of a rank: its share of the state, the same again as the base of increments, and a round of parts. The thread runs at a low priority (Linux),
so it takes mostly what training leaves of the CPU.

Cost at the boundary: one copy of the rank's share. Beside training: hashing, encoding and writing it. When not to use it: where nothing is to be done
meanwhile (`save_snapshot` waits).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from penstock.comm import World, compute_alone
from penstock.config import SharedError, UserError
from penstock.parallel import Layout, Placement
from penstock.store.cells.cell_writer import CellWriter, Increments, Lineage
from penstock.store.cells.chunks import ChunkEntry, Damaged
from penstock.store.cells.grid import StatePlan
from penstock.store.cells.packs import new_pack_name
from penstock.store.places.folder import Folder, LocalFolder
from penstock.store.snapshots.attempt import remove_pack, try_again, write_together
from penstock.store.snapshots.manifest import Manifest, Snapshot, list_snapshots, read_manifest, write_manifest
from penstock.store.snapshots.publish import make_manifest, report, superseded
from penstock.store.snapshots.staging import HostCells, Share, Staging
from penstock.store.snapshots.together import Ranks

#: Niceness of the background thread: a tenth of the CPU where training wants all of it. With less it could hold the interpreter's lock for long.
NICENESS = 10
#: Longest wait, seconds, for the background thread to give up a snapshot: the disk may be slow.
ABANDON_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of a snapshot, the same on all ranks: `snapshot`, or why it was given up. `n_bytes` were written by all ranks together."""

    step: int
    snapshot: Snapshot | None
    failure: str
    n_bytes: int
    seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A snapshot on its way."""

    step: int
    cells: HostCells
    numbers: dict[str, Any]
    about: dict[str, Any]
    increments: Increments


def nothing(snapshot: Snapshot, manifest: Manifest) -> None:
    """What follows on a snapshot where nothing does."""


class Saver:
    """Writes the snapshots of a run into `folder`; all ranks of `world` must make it, and call it, together.

    `before` is the snapshot that the first one follows, if there is one. On the lead `after` is called with each that has been published, in the
    background; a `UserError` of it is a warning.
    """

    def __init__(
        self,
        folder: Folder,
        world: World,
        increments: Increments | None = None,
        before: Manifest | None = None,
        after: Callable[[Snapshot, Manifest], None] = nothing,
        timeout_s: float = 600.0,
    ) -> None:
        self._folder, self._device, self._after = folder, world.device, after
        self._increments = increments or Increments()
        self._ranks, self._meter = Ranks(world, timeout_s), world.meter
        #: The id of the snapshot that the next one follows, and the chunks which that one needs; the lead's.
        self._parent: str | None = before.id if before else None
        self._stored: dict[str, ChunkEntry] = before.chunks if before else {}
        self._lineage = Lineage({digest: entry.base for digest, entry in before.chunks.items()} if before else {})
        self._plan: StatePlan | None = None
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._work: SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = SimpleQueue()
        self._last: Future[None] | None = None
        self._thread: threading.Thread | None = None

    def follow(self, increments: Increments) -> None:
        """Store the snapshots from the next one on otherwise."""
        self._increments = increments

    def prepare(self, tensors: Mapping[str, Tensor], placements: Mapping[str, Placement], layout: Layout) -> None:
        """Plan for a state, and make room for it in the background, so that its first snapshot need not; nothing where that is done."""
        if self._plan is not None and self._plan.fits(tensors, placements, layout):
            return
        self.wait()
        self._lineage.forget_content()
        self._free: HostCells | None = None
        self._plan = StatePlan(tensors, placements, layout)
        self._staging = Staging(Share(self._plan, self._ranks.rank), self._device)
        self._begin(self._make_room)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        placements: Mapping[str, Placement],
        layout: Layout,
        numbers: dict[str, Any],
        about: dict[str, Any],
        exact: bool = False,
    ) -> float:
        """Begin to write the state of `step`: this rank's `tensors`, placed on `layout` as `placements` say (the others are whole on every rank).

        Returns the seconds it waited for the snapshot before. The tensors may change once this has returned. `exact`: without bounded error.
        """
        waited = self.wait()
        self.prepare(tensors, placements, layout)
        waited += self.wait()
        assert self._free is not None
        kind = "lossless" if exact and self._increments.kind == "bounded" else self._increments.kind
        job = Job(step, self._free, numbers, about, replace(self._increments, kind=kind))
        self._staging.copy(tensors, job.cells)
        self._begin(lambda: self._outcomes.put(self._save(job)))
        return waited

    def wait(self) -> float:
        """Wait until nothing is under way; return the seconds. Raises what kept a background thread from doing its work at all."""
        began = time.perf_counter()
        if self._last is not None:
            self._last.result()
        return time.perf_counter() - began

    def outcomes(self) -> list[Outcome]:
        """What became of snapshots since the last call; raises what kept a background thread from doing its work at all."""
        if self._last is not None and self._last.done():
            self._last.result()
        return [self._outcomes.get() for _ in range(self._outcomes.qsize())]

    def close(self) -> None:
        """Let the background thread end when it is through with what it has; waits for that if nothing is under way."""
        self._work.put(None)
        if self._thread is not None and (self._last is None or self._last.done()):
            self._thread.join()

    def abandon(self) -> None:
        """End the background thread, which gives up what it is writing; for when ranks are lost, and their process group with them."""
        self._ranks.given_up.set()
        self._work.put(None)
        if self._thread is not None:
            self._thread.join(ABANDON_S)
            if self._thread.is_alive():
                raise RuntimeError(f"the snapshot under way was not given up within {ABANDON_S:.0f} s")

    def _begin(self, work: Callable[[], None]) -> None:
        """Let the background thread do something when it is through with what it has."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._do_all, name="penstock-saver", daemon=True)
            self._thread.start()
        self._last = Future()
        self._work.put((work, self._last))

    def _do_all(self) -> None:
        lower_priority()
        self._meter.run_aside()
        compute_alone()
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # pinned memory belongs to a device's context
        while (given := self._work.get()) is not None:
            work, done = given
            try:
                work()
            except BaseException as error:  # the main thread raises it
                done.set_exception(error)
            else:
                done.set_result(None)

    def _make_room(self) -> None:
        self._free = self._free or self._staging.room()

    def _save(self, job: Job) -> Outcome:
        """Write a snapshot together with the other ranks' threads."""
        began, share = time.perf_counter(), self._staging.share
        self._staging.assemble(self._ranks.axis, job.cells)
        pack = new_pack_name(job.step, self._ranks.rank)
        written = write_together(self._ranks, lambda: CellWriter(self._folder, pack, share, job.cells, self._lineage, job.increments))
        if isinstance(written, str):
            remove_pack(self._folder, pack)
            return Outcome(job.step, None, written, 0, time.perf_counter() - began)
        reports = self._ranks.tell(report(written))
        n_bytes = sum(told["n_bytes"] for told in reports)
        verdict = self._ranks.told_by_lead(self._publish(job, reports) if self._ranks.is_lead else None)
        if verdict["fault"]:
            raise RuntimeError(f"a snapshot could not be published: rank 0: {verdict['fault']}")
        if verdict["failure"]:
            remove_pack(self._folder, pack)
            if verdict["forget"]:
                self._stored, self._lineage = {}, Lineage()
            return Outcome(job.step, None, verdict["failure"], n_bytes, time.perf_counter() - began)
        self._follow(written, verdict["superseded"], job)
        snapshot = Snapshot(self._folder, verdict["file"], job.step, verdict["id"])
        return Outcome(job.step, snapshot, "", n_bytes, time.perf_counter() - began, tuple(verdict["warnings"]))

    def _publish(self, job: Job, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make the manifest appear, on the lead; the verdict for all ranks."""
        verdict: dict[str, Any] = {"failure": "", "fault": "", "forget": False, "warnings": []}
        assert self._plan is not None
        try:
            manifest = make_manifest(job.step, self._parent, self._stored, job.numbers, job.about, self._plan, reports)
            snapshot = Snapshot(self._folder, manifest.file, manifest.step, manifest.id[:12])
            why = try_again(lambda: write_manifest(self._folder, manifest))
            if why and not is_there(snapshot):
                return verdict | {"failure": why}
            if why:
                verdict["warnings"].append(f"step {job.step} is saved, but perhaps not safe from a loss of power: {why}")
            self._parent, self._stored = manifest.id, manifest.chunks
            with warned(verdict["warnings"]):
                self._after(snapshot, manifest)
            return verdict | {"file": snapshot.file, "id": snapshot.id, "superseded": superseded(manifest, reports)}
        except Damaged as error:  # what it builds on has been removed: the next one builds on nothing
            return verdict | {"failure": str(error), "forget": True}
        except Exception as error:  # the other ranks must not wait for this one
            traceback.print_exc()
            return verdict | {"fault": f"{type(error).__name__}: {error}"}

    def _follow(self, writer: CellWriter, superseded: list[str], job: Job) -> None:
        """Let the next snapshot build on this one."""
        before, self._lineage = self._lineage.cells, writer.lineage(superseded)
        self._free = before if self._lineage.cells is job.cells else job.cells
        self._make_room()


def is_there(snapshot: Snapshot) -> bool:
    """Whether a snapshot is there, although it was said that it could not be written: its name was, and only the flush of the disk was refused."""
    try:
        read_manifest(snapshot)
    except Damaged:
        return False
    return True


@contextmanager
def warned(warnings: list[str]) -> Iterator[None]:
    """Make warnings of what goes wrong in the block with files."""
    try:
        yield
    except (OSError, UserError) as error:
        warnings.append(str(error))


def lower_priority() -> None:
    """Let this thread run when training does not want to, where the system knows priorities of threads."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def save_snapshot(
    folder: Folder | Path,
    step: int,
    tensors: Mapping[str, Tensor],
    numbers: dict[str, Any],
    world: World,
    placements: Mapping[str, Placement] | None = None,
    layout: Layout | None = None,
    about: dict[str, Any] | None = None,
) -> Snapshot:
    """Write a state into a run's folder and wait for it, on all ranks together, as `Saver.save` does; it follows the newest snapshot there.

    Raises `SharedError` on every rank when any rank could not write, leaving earlier snapshots untouched.
    """
    opened = folder if isinstance(folder, Folder) else LocalFolder(folder)
    earlier = list_snapshots(opened)
    saver = Saver(opened, world, before=read_manifest(earlier[-1]) if earlier else None)
    try:
        saver.save(step, tensors, placements or {}, layout or Layout(replicate=world.size), numbers, about or {})
        saver.wait()
        return published(saver.outcomes()[-1], opened)
    finally:
        saver.close()


def published(outcome: Outcome, folder: Folder) -> Snapshot:
    """The snapshot that an outcome tells of; raises `SharedError` if it was given up."""
    if outcome.snapshot is not None:
        return outcome.snapshot
    earlier = list_snapshots(folder)
    last = f"the last good snapshot is step {earlier[-1].step}" if earlier else "there is no earlier snapshot"
    raise SharedError(f"step {outcome.step} could not be saved: {outcome.failure}; {last}")
