"""One rank's process, through all generations: `python -m penstock.engine.survive.member RUN NUMBER PORT BEATS`.

    wait for a generation that this process is a member of
    → say which states it has → meet the others → take up the newest whole one (`take_up.py`), else the newest snapshot → train
    → a rank is lost: leave the groups, keep the state, and wait for the next generation
    → more or fewer ranks are asked for: the same in order (`parting.py`), and those that are too many end

When the supervisor dies its ranks are asked to stop, as by Ctrl-C: they take their step to the end, save, and end; `penstock resume` goes on.

A process that is no member waits, with everything imported and the corpus open: a warm standby. An error of its own ends the process, as in a rank
that nobody supervises (`guard/failures.py`); the others then see a lost rank.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from penstock.comm import World, join_world
from penstock.config import Config, EchoedError, UserError, leave
from penstock.engine.build import Parts, build
from penstock.engine.control import StopRequest
from penstock.engine.guard.failures import die_with_parent, run_reporting
from penstock.engine.guard.heart import Heart
from penstock.engine.guard.peers import Peers
from penstock.engine.guard.roll_back import RolledBack
from penstock.engine.record.journal import Journal
from penstock.engine.requests.obey import HANDLERS
from penstock.engine.starting.worker import announce, begun_again, finish, open_corpus, open_journal, train_or_tell, use_threads
from penstock.engine.survive.fewer import config_for
from penstock.engine.survive.groups import Groups, is_broken
from penstock.engine.survive.hangs import stacks_file
from penstock.engine.survive.parting import Parted, Parting
from penstock.engine.survive.take_up import Chosen, Held, choose, held_of, take_up
from penstock.engine.survive.wire import Generation, Line, Status
from penstock.engine.trainer import complete
from penstock.store import Run, list_snapshots, writer_lock


class Life:
    """What a process keeps from one generation to the next."""

    def __init__(self, run: Run, number: int, port: int, beats: Path) -> None:
        self._run, self._number, self._port = run, number, port
        self._heart, self._line = Heart(beats, number), Line(port)
        self._config, self._lock = run.config(), ExitStack()
        self._corpus = open_corpus(run, self._config)
        self._stop = StopRequest(supervised=True)
        self._journal: Journal | None = None
        self._held: list[Held] = []
        self._parts: Parts | None = None
        self._era, self._parting, self._parent = -1, Parting(), os.getppid()
        HANDLERS["scale"] = self._parting.scale
        self._recoveries: list[dict[str, Any]] = []
        self._leads = False

    def live(self) -> None:
        """Take part in one generation after the other, until the run has ended."""
        number = 0
        with self._stop, self._lock:
            self._heart.says("waiting")
            while (generation := self._following(number)) is not None:
                if self._number in generation.leavers or (self._number in generation.members and self._serve(generation)):
                    return
                if self._number not in generation.members:
                    self._heart.says("waiting")
                number += 1

    def _following(self, number: int) -> Generation | None:
        """Wait for a generation; None if the supervisor has died, after which there is none."""
        try:
            return self._line.generation(number)
        except RuntimeError:
            if os.getppid() == self._parent:
                raise
            return None

    def _serve(self, generation: Generation) -> bool:
        """Train as a member; whether the run has ended. Otherwise others are to go on with the state, and what can be kept is kept."""
        groups = Groups(self._port, generation.number, self._config.layout.timeout_s)
        self._heart.begin(generation.number)
        try:
            self._train(generation, groups)
        except Parted as parted:
            self._keep(parted.handed)
            if parted.ends and self._leads:  # another rank leads on
                self._lock.close()
            groups.leave(broken=False)
            self._heart.says("parted")
            return False
        except Exception as error:
            if not groups.over.is_set() and (isinstance(error, UserError) or not is_broken(error)):
                raise
            self._heart.says("broken")
            groups.leave()
            self._keep()
            return False
        groups.leave(broken=False)
        return True

    def _train(self, generation: Generation, groups: Groups) -> None:
        rank, size = generation.members.index(self._number), len(generation.members)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
        timeout_s = self._config.layout.timeout_s
        statuses = self._line.check_in(generation, rank, self._status(), groups.check, timeout_s)
        config = config_for(self._run.config(), size)  # a change may have come between two steps; who wrote it has checked in, or is lost
        use_threads(config)
        world = join_world(config.run.device, timeout_s, groups.store)
        self._lead(world)
        parts = self._begin(generation, config, world, statuses)
        finished = None
        try:
            while finished is None:
                try:
                    finished = train_or_tell(parts)
                except RolledBack:
                    parts = self._go_back(generation, parts)
        except UserError:
            parts.saving.close()
            parts.journal.close()
            raise
        if not finished and os.getppid() != self._parent:
            text = f"the supervisor of the ranks, or who forks them for it, ended; they saved step {parts.progress.step}, and ended too"
            parts.journal.say(f"{text}; go on with `penstock resume {self._run.path}`")
            parts.saving.tell_history("failure", text, parts.progress.step)
        self._heart.says("finish")
        parts.saving.close()
        parts.journal.close()
        finish(parts, "finished" if finished else "interrupted")

    def _begin(self, generation: Generation, config: Config, world: World, statuses: list[Status]) -> Parts:
        """This rank's parts, with the newest state there is, and all that was due at its step done."""
        chosen = choose(world, statuses, self._held)
        journal = self._journal = self._joined(config, world, statuses, chosen)
        parts = take_up(self._run, config, world, self._corpus, self._stop, journal, chosen) if chosen else None
        in_memory = parts is not None
        if parts is None:
            if list_snapshots(self._run.folder):
                journal.rewind(list_snapshots(self._run.folder)[-1].step)
            parts = build(self._run, config, world, self._corpus, self._stop, journal)
        self._parts, self._era = parts, generation.number
        self._recoveries = parts.progress.recoveries = max((status.recoveries for status in statuses), key=len) or parts.progress.recoveries
        self._watched(parts)
        if generation.number == 0:
            announce(parts)
            return parts
        where = "the state in memory" if in_memory else "the newest snapshot" if parts.progress.step else "the beginning"
        self._heart.then(partial(self._tell, generation, where, parts.progress.step))
        if in_memory:
            complete(parts, time.perf_counter() - parts.progress.wall_s)
        if parts.progress.step >= parts.until:
            self._heart.goes_on(parts)
        return parts

    def _go_back(self, generation: Generation, before: Parts) -> Parts:
        """This rank's parts from the run's newest snapshot, where all have agreed to go back to it (`guard/roll_back.py`)."""
        self._heart.begin(generation.number)
        self._parts, self._held = None, []  # a rank that is lost now leaves the others with the snapshot
        parts = begun_again(before, config_for(self._run.config(), before.world.size))
        self._parts, parts.progress.recoveries = parts, self._recoveries
        self._watched(parts)
        announce(parts)
        return parts

    def _watched(self, parts: Parts) -> None:
        """Let the supervisor know where this rank is, and others have copies of its state. All ranks must call it."""
        parts.heart, parts.timer.listener, parts.peers = self._heart, self._heart.says, Peers(parts.config.survive.copies)
        parts.peers.keep(parts)
        parts.world.barrier()  # all have the state: what was before can go
        self._held = []
        self._heart.at(parts.progress.step)

    def _tell(self, generation: Generation, where: str, step: int, parts: Parts) -> None:
        """The first step of a generation is through: complete the record of why there is one, and tell the user and the history."""
        self._parting.tell(parts)
        if not generation.cause:
            return
        seconds = round(time.monotonic() - generation.since, 3)
        entry = {"step": step, "cause": generation.cause, "seconds": seconds}
        parts.progress.recoveries.append(entry)
        text = f"{generation.cause}; {generation.how}, from {where}; {seconds:.2f} s without a step"
        parts.journal.say(f"step {step}: {text}")
        parts.journal.event(step, "recovery", text)
        parts.saving.tell_history("recovery", text, step, recovery=entry, parted=time.time() - seconds)

    def _status(self) -> Status:
        peak = self._journal.peak_a_rank if self._journal else 0.0
        return Status([held.offer for held in self._held], self._recoveries, peak)

    def _joined(self, config: Config, world: World, statuses: list[Status], chosen: Chosen | None) -> Journal:
        """The journal, which goes on where the state does; all ranks must call it."""
        peak = max(status.peak for status in statuses)
        if not peak:
            return open_journal(self._run, config, world)
        snapshots = list_snapshots(self._run.folder)
        step = chosen.progress.step if chosen else snapshots[-1].step if snapshots else 0
        if self._journal is None:
            return Journal(self._run, config, world, peak * world.size, step)
        self._journal.join(world, step)
        return self._journal

    def _lead(self, world: World) -> None:
        """Hold the run's lock on the rank that leads; raises `UserError` on all ranks if another process does."""
        refused = ""
        if world.is_lead and not self._leads:
            try:
                self._lock.enter_context(writer_lock(self._run.path))
                self._leads = True
            except UserError as error:
                refused = str(error)
        if world.any(bool(refused), "lock"):
            raise UserError(refused) if refused else EchoedError("rank 0 says who writes the run")

    def _keep(self, handed: dict[int, dict[str, Tensor]] | None = None) -> None:
        """Keep the states that this rank has a part of, with what leaving ranks have `handed` to it, and nothing of a broken generation."""
        parts, self._parts = self._parts, None
        if parts is None:
            return
        if handed is None:
            parts.saving.abandon()
        else:
            parts.saving.close()
        self._held += held_of(parts, self._era, handed or {})


def main(folder: Path, number: int, port: int, beats: Path) -> int:
    """Live; the exit code is the command's."""
    die_with_parent(signal.SIGTERM)  # not at once, as other ranks do
    stacks = stacks_file(folder, number)
    stacks.parent.mkdir(exist_ok=True)
    faulthandler.register(signal.SIGUSR1, open(stacks, "a", encoding="utf-8"), all_threads=True)  # noqa: SIM115 (stays open)
    return run_reporting(folder, lambda: Life(Run(folder), number, port, beats).live())


if __name__ == "__main__":
    leave(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
