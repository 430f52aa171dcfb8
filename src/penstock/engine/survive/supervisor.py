"""The supervisor of a run's ranks: starts them, sees one die or hang, and says who goes on.

    a member ends      by a signal or with an error of its own: the next generation is posted at once, with somebody in its place (`survive.replace`)
                       with a user's mistake, or in the same way as all others: nothing can be saved, and the run ends as without a supervisor
    a step is overdue  all leave their stacks, and who hangs is killed (`hangs.py`)
    all are broken     and none died: a connection was lost; the same members form the next generation
    all have parted    as another number of ranks was asked for (`scaling.py`): those that stay and the new ones form the next generation

What fails `SAME_STEP` times with no step between ends the run, with what failed. The supervisor holds no state of the run and takes no part in its
steps; ranks die with it.

Cost: a process that sleeps, and reads a few numbers ten times a second.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from torch._C._distributed_c10d import TCPStore

from penstock.config import RankFailed, UserError
from penstock.engine.guard.failures import cause, forget_failures, said_by
from penstock.engine.guard.heart import PLACE, Beat, opened, read_beat
from penstock.engine.starting.launch import HOST, check_port, forwarded_signals
from penstock.engine.starting.resolve import check_world, cores
from penstock.engine.starting.template import wait_for_all, wait_for_end
from penstock.engine.survive.fewer import config_for
from penstock.engine.survive.hangs import StepWatch, blame
from penstock.engine.survive.policy import Pilot, Policy
from penstock.engine.survive.processes import Member
from penstock.engine.survive.scaling import Scaling
from penstock.engine.survive.wire import Generation, post
from penstock.store import Run, append_event

#: Failures with no step between them after which the run ends.
SAME_STEP = 4
#: Seconds between two looks at the beats; and that other ranks have to fail by themselves after one did, or to end after one has.
LOOK_S, TOGETHER_S, LAST_S = 0.1, 0.5, 30.0
#: Longest wait, seconds, for all to say what mistake they met.
SPEAK_S = 5.0
#: Processes that may be started to have more ranks, beyond those that replace others.
MORE = 1024
#: Exit code of a rank that met a user's mistake.
MISTAKE = 2


def supervise(run: Run, nproc: int, port: int) -> None:
    """Train `run` on `nproc` ranks of this host, whatever becomes of single ones; raises `UserError`, or `RankFailed` when it cannot go on."""
    check_port(port)
    forget_failures(run.path)
    with tempfile.TemporaryDirectory(prefix="penstock-beats-") as folder:
        supervisor = Supervisor(run, nproc, port, Path(folder) / "beats")
        try:
            with forwarded_signals(supervisor.members, say=True) as came:
                supervisor.serve(came)
        except RankFailed as error:
            with suppress(UserError, OSError):
                append_event(run.path, "failure", str(error).partition("; ")[0])
            raise
        finally:
            supervisor.close()


class Supervisor:
    """Keeps the ranks of one run."""

    def __init__(self, run: Run, nproc: int, port: int, beats: Path) -> None:
        self._run, self._config = run, run.config()
        section = self._config.survive
        self._places, self._next = (nproc + section.standby) * (section.most + 1) + MORE, 0
        beats.write_bytes(bytes(PLACE * self._places))
        self._store = TCPStore(HOST, port, is_master=True, wait_for_workers=False)
        self._beats_file, self._beats = beats, opened(beats)
        self._environment = dict(os.environ)
        self._environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // nproc)))
        self._environment |= {"GROUP_RANK": "0"}
        self._all: dict[int, Member] = {}
        self._leavers: set[int] = set()  # those that end as they are not needed any more
        self._standby = section.standby if section.replace == "standby" else 0
        self._watch, self._scaling = StepWatch(section.patience_s), Scaling(run)
        self._pilot = Pilot(run, Policy(self._config.elastic)) if self._config.elastic.policy != "off" else None
        self._failures, self._failed_at, self._recoveries = 0, -1, 0
        self._mend = f"the run is {run.path}, go on from its last snapshot with `penstock resume {run.path}`"
        self._generation = Generation(0, tuple(self.start() for _ in range(nproc)))
        post(self._store, self._generation)

    def members(self) -> list[Member]:
        """The processes that take part in the present generation."""
        return [self._all[number] for number in self._generation.members]

    def serve(self, came: list[int]) -> None:
        """Keep the run going until it ends; `came` are the signals that this process got."""
        while True:
            ended = wait_for_end(list(self._all.values()), LOOK_S)
            self._drop_spares([member for member in ended if member.number not in self._generation.members])
            lost = [member for member in ended if member.number in self._generation.members]
            if any(member.exit_code() == 0 for member in lost):
                self._settle(LAST_S)
                return
            if lost:
                self._answer(lost, came)
            else:
                self._look()

    def close(self) -> None:
        """End all that is left."""
        for member in self._all.values():
            member.end()

    def start(self) -> int:
        """Start a process; its number, which no other ever had."""
        if self._next >= self._places:
            raise RankFailed(f"{self._next} processes were started for this run, which is all that survive.most allows; {self._mend}")
        number, self._next = self._next, self._next + 1
        self._all[number] = Member(number, self._run.path, [str(self._store.port), str(self._beats_file)], self._environment)
        return number

    def step(self) -> int:
        """The step that the ranks have come to."""
        return max(self._beat(member).step for member in self.members())

    def check_places(self, number: int) -> None:
        """Raise `UserError` if so many more processes cannot be started."""
        if self._next + number > self._places:
            raise UserError(f"{self._next} processes were started for this run, which is all that one supervisor keeps; {self._mend}")

    def spares(self) -> list[int]:
        """Living processes that are no members, those that wait first."""
        found = [number for number in self._all if number not in self._leavers.union(self._generation.members) and self.lives(number)]
        return sorted(found, key=lambda number: not self.waits(number))

    def lives(self, number: int) -> bool:
        """Whether a process has not ended."""
        return number in self._all and self._all[number].exit_code() is None

    def waits(self, number: int) -> bool:
        """Whether a process has made itself ready, and waits for a generation that it is a member of."""
        return read_beat(self._beats, number).phase == "waiting"

    def drop_surplus(self) -> None:
        """End processes that are neither members nor standbys."""
        for number in self.spares()[self._standby :]:
            self._all.pop(number).end()

    def _answer(self, lost: list[Member], came: list[int]) -> None:
        """Go on after members have ended, or raise why that cannot be."""
        noticed = time.monotonic()
        if any(member.exit_code() == 1 for member in lost):
            wait_for_all(self.members(), TOGETHER_S)
        codes = {rank: code for rank, member in enumerate(self.members()) if (code := member.exit_code()) is not None}
        together = len(codes) == len(self.members()) and set(codes.values()) == {1}
        if MISTAKE in codes.values() or together or came:  # a run that is asked to stop has no use for another rank
            self._settle(SPEAK_S)
            for member in self._all.values():
                member.send_signal(signal.SIGKILL)
            wait_for_all(self.members(), LAST_S)
            raise cause(self._run.path, codes, next(iter(codes)), self._mend)
        self._regroup(codes, noticed)

    def _settle(self, seconds: float) -> None:
        """Wait so long at most until all members have ended, but for those that only know that they lost another."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            left = [member for member in self.members() if member.exit_code() is None]
            if all(self._beat(member).phase in ("broken", "parted", "waiting") for member in left):
                return
            time.sleep(LOOK_S)

    def _regroup(self, codes: dict[int, int], noticed: float, say: str = "") -> None:
        """Post the next generation, in place of one whose ranks ended with `codes`; raises `RankFailed` if there have been too many."""
        before, beats = self._generation, [self._beat(member) for member in self.members()]
        step = max(beat.step for beat in beats)
        why = "; ".join(f"{said_by(self._run.path, rank, code)} {where(beats[rank])}" for rank, code in codes.items())
        why = f"{say}{why}" if codes else say
        late = bool(codes) and all(0 <= beats[rank].generation < before.number for rank in codes)  # they died with those that ended the one before
        self._failures = self._failures + (not late) if step == self._failed_at else 1
        self._failed_at = step
        self._recoveries += 1
        if self._failures >= SAME_STEP:
            raise RankFailed(f"{why}, the failure number {SAME_STEP} with no step between; {self._mend}", next(iter(codes), None))
        if self._recoveries > self._config.survive.most:
            raise RankFailed(f"{why}, after survive.most = {self._config.survive.most} recoveries; {self._mend}", next(iter(codes), None))
        members, how = self._chosen([None if rank in codes else number for rank, number in enumerate(before.members)])
        self._generation = Generation(before.number + 1, members, cause=why, how=how, since=noticed)
        post(self._store, self._generation)
        for rank in codes:
            self._all.pop(before.members[rank]).end()
        self._scaling.lost(self, list(codes))
        with suppress(UserError, OSError):
            append_event(self._run.path, "failure", why, step)

    def _chosen(self, places: list[int | None]) -> tuple[tuple[int, ...], str]:
        """Who takes the places of the next generation, None being a lost rank's; and how that is done, in words."""
        left, lost = [number for number in places if number is not None], places.count(None)
        if lost == 0:
            return tuple(left), "the same ranks went on"
        if self._config.survive.replace == "none" and (ranks := self._fewer(len(left))):
            rest = "" if ranks == len(left) else f", {len(left) - ranks} more wait"
            return tuple(left[:ranks]), f"{ranks} rank{'s' * (ranks > 1)} went on without it{rest}"
        spare = self.spares()
        ready = sum(self.waits(number) for number in spare[:lost])
        new = spare[:lost] + [self.start() for _ in range(lost - len(spare[:lost]))]
        places = [number if number is not None else new.pop(0) for number in places]
        words = "a standby took its place" if ready == lost else "a new process took its place" if lost == 1 else "other processes took their places"
        return tuple(number for number in places if number is not None), words

    def _fewer(self, most: int) -> int:
        """The largest number of ranks up to `most` that the run can be laid out for; 0: none."""
        for ranks in range(most, 0, -1):
            with suppress(UserError):
                check_world(config_for(self._run.config(), ranks), ranks)
                return ranks
        return 0

    def _look(self) -> None:
        """Look at the beats: whether a connection was lost, a rank hangs, or standbys are to be started."""
        members = self.members()
        beats = [self._beat(member) for member in members]
        number = self._generation.number
        self._scaling.look(self)
        if self._pilot is not None:
            self._pilot.look(len(members), [beat for beat in beats if beat.generation == number])
        if all(beat.generation == number and beat.phase == "parted" for beat in beats):
            self._generation = self._scaling.following(self._generation)
            self._leavers.update(self._generation.leavers)
            post(self._store, self._generation)
        elif all(beat.generation == number and beat.phase in ("broken", "parted") for beat in beats):
            self._regroup({}, time.monotonic(), "ranks lost their connection, and none of them ended")
        elif self._watch.split(beats, number):
            self._regroup({}, time.monotonic(), "ranks lost their connection, and others went on")
        elif self._watch.overdue(beats, number):
            self._end_hang(dict(enumerate(members)), beats)
        elif behind := self._watch.left_behind(beats, number):
            self._end(behind, time.monotonic(), min(beats[rank].since for rank in behind), "stayed in a generation that had ended")
        elif self._standby and any(beat.generation == number and beat.taken for beat in beats):
            for _ in range(self._standby - len(self.spares())):
                self.start()

    def _end_hang(self, members: dict[int, Member], beats: list[Beat]) -> None:
        """Kill the ranks that others wait for; give all more time if none waits."""
        noticed, since = time.monotonic(), min(beat.since for beat in beats)
        guilty, awaited = blame(self._run.path, members)
        if awaited:
            self._end(guilty, noticed, since, "hung", f", stacks are in {self._run.path / 'stacks'}")
        else:
            self._watch.forgive()

    def _end(self, guilty: list[int], noticed: float, since: float, did: str, more: str = "") -> None:
        """Kill ranks that `did` something they should not since then, and go on without them."""
        members = self.members()
        for rank in guilty:
            members[rank].send_signal(signal.SIGKILL)
        wait_for_all([members[rank] for rank in guilty], LAST_S)
        names = f"rank{'s' * (len(guilty) != 1)} {', '.join(map(str, guilty))}" if guilty else "ranks that wait for each other"
        text = f"{names} {did} for {noticed - since:.1f} s{more}"
        codes = {rank: members[rank].exit_code() or -signal.SIGKILL for rank in guilty}
        self._regroup(codes, noticed, f"{text}; " if codes else text)

    def _drop_spares(self, ended: list[Member]) -> None:
        for member in ended:
            self._all.pop(member.number).end()
            if member.number not in self._leavers:
                print(f"a waiting process ended with exit code {member.exit_code()}", file=sys.stderr, flush=True)
                self._standby = 0  # what ended one would end the next

    def _beat(self, member: Member) -> Beat:
        return read_beat(self._beats, member.number)


def where(beat: Beat) -> str:
    """Where a rank was, in words."""
    return f"after step {beat.step}, in {beat.phase}"
