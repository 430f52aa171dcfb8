"""More or fewer ranks: the supervisor's part of `penstock scale`, and the asking.

    a command on hold is found → can the run be laid out so? → start the processes that are lacking → all of them wait, warmed: release it
    → the ranks part in order (`parting.py`) → the next generation: those that stay in their order, then the new ones; the others end

The layout is chosen as for fewer ranks after a loss (`fewer.py`). Without one rank, named by whoever asks, the run goes on in the same way. A
command that is taken back, or whose new processes die, leaves the run as it was;
ranks that are lost while it is carried out are answered as any loss, and the command is refused.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from penstock.comm import choose_device
from penstock.config import Config, UserError
from penstock.engine.requests.commands import FOLDER, HELD, TAKEN, Answer, Command, answer, pending, release, send
from penstock.engine.starting.resolve import check_ranks, check_world, cores
from penstock.engine.survive.fewer import config_for
from penstock.engine.survive.parting import after
from penstock.engine.survive.wire import Generation
from penstock.store import Run, append_event, read_history

if TYPE_CHECKING:
    from penstock.engine.survive.supervisor import Supervisor


def survives(config: Config, ranks: int) -> bool:
    """Whether a run that starts with so many ranks is to go on when one is lost, so that a supervisor keeps them."""
    section = config.survive
    return section.enabled == "on" or (section.enabled == "auto" and ranks > 1 and choose_device(config.run.device).type == "cpu")


def exclude_rank(run: Run, rank: int, wait_s: float, why: str) -> dict[str, Any]:
    """Have a running run go on without one of its ranks; raises `UserError` where it is refused, or not done in time."""
    return _ask(run, {"leaving": [rank], "why": why}, wait_s, f"`penstock resume {run.path}` on other hosts")


def scale_run(run: Run, ranks: int, wait_s: float, why: str = "") -> dict[str, Any]:
    """Have a running run go on with so many ranks after its next step; raises `UserError` where it is refused, or not done in time."""
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: a run has at least one rank; stop it with Ctrl-C or SIGTERM")
    return _ask(run, {"ranks": ranks, "why": why}, wait_s, f"`penstock resume {run.path} --nproc {ranks} --set survive.enabled=on`")


def _ask(run: Run, arguments: dict[str, Any], wait_s: float, instead: str) -> dict[str, Any]:
    """Have ranks come or go as a command's arguments say."""
    config = run.config()
    if not survives(config, _started_with(run)):
        mend = f"stop it and go on with {instead}"
        how = f"survive.enabled = '{config.survive.enabled}'" + (" and one rank" if config.survive.enabled == "auto" else "")
        raise UserError(f"{run.path} was started with {how}, so nothing watches over its ranks that could start others; {mend}")
    came = send(run.path, "scale", arguments, wait_s, hold=True)
    if came.state == "refused":
        raise UserError(came.text)
    return {"run": str(run.path), "step": came.step, "seconds": came.seconds, "text": came.text} | came.data


def _started_with(run: Run) -> int:
    """The ranks that a run was started or resumed with, by its history."""
    begun = [event for event in read_history(run.folder).events if event.kind in ("start", "resume")]
    layout = begun[-1].data.get("layout") if begun else None
    return int(layout.get("ranks", 1)) if isinstance(layout, dict) else 1


class Scaling:
    """The command that is being made ready or carried out, if there is one."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._command: Command | None = None
        self._ranks = 0
        self._new: list[int] = []
        self._released = self._posted = False

    def look(self, supervisor: Supervisor) -> None:
        """Find a command, or see how far the one is that was found."""
        command = self._command
        if command is None:
            found = next((command for command in pending(self._run.path) if command.kind == "scale"), None)
            if found is not None:
                self._begin(supervisor, found)
        elif not self._is_open(command):
            self._command = None
            supervisor.drop_surplus()
        elif not self._released:
            if any(not supervisor.lives(number) for number in self._new):
                self._refuse(supervisor, command, "a process that was to become a rank ended before it was ready; what it printed says why")
            elif all(supervisor.waits(number) for number in self._new):
                release(self._run.path, command.name)
                self._released = True

    def following(self, before: Generation) -> Generation:
        """The generation to follow one whose ranks have parted."""
        self._posted = True
        assert self._command is not None
        _, leaving = after(self._command, len(before.members))
        members = tuple(number for rank, number in enumerate(before.members) if rank not in leaving) + tuple(self._new)
        return Generation(before.number + 1, members, tuple(before.members[rank] for rank in leaving))

    def lost(self, supervisor: Supervisor, ranks: list[int]) -> None:
        """Ranks were lost, or their connection: what has not been done is refused; what has been done the lead tells, if it lives."""
        command = self._command
        if command is None or not self._is_open(command) or (self._posted and 0 not in ranks):
            return
        if self._posted:
            answer(self._run.path, command.name, Answer("done", f"the run has {self._ranks} ranks, of which rank 0 was lost when it went on"))
        else:
            self._refuse(supervisor, command, "a rank was lost meanwhile, and the run goes on without more or fewer; ask again")

    def _begin(self, supervisor: Supervisor, command: Command) -> None:
        config, before = self._run.config(), len(supervisor.members())
        try:
            ranks, leaving = after(command, before)
            if leaving and (max(leaving) >= before or not ranks):
                raise UserError(f"the run has {before} rank{'s' * (before != 1)}, and cannot go on without rank {max(leaving)}")
            if ranks == before:
                raise UserError(f"the run has {ranks} rank{'s' * (ranks != 1)} already")
            check_ranks(ranks, config.run.device, cores(), "--ranks")
            check_world(config_for(config, ranks), ranks)
            supervisor.check_places(ranks - before)
        except (UserError, ValueError, KeyError) as error:
            self._refuse(supervisor, command, str(error))
            return
        self._command, self._ranks, self._released, self._posted = command, ranks, False, False
        lacking = max(0, ranks - before)
        spare = supervisor.spares()[:lacking]
        self._new = spare + [supervisor.start() for _ in range(lacking - len(spare))]

    def _refuse(self, supervisor: Supervisor, command: Command, why: str) -> None:
        self._command = None
        answer(self._run.path, command.name, Answer("refused", why, supervisor.step()))
        with suppress(UserError, OSError):
            append_event(self._run.path, "note", f"refused to scale: {why}", supervisor.step(), command="scale", who=command.who)
        supervisor.drop_surplus()

    def _is_open(self, command: Command) -> bool:
        """Whether it has been neither answered nor taken back."""
        return any((self._run.path / FOLDER / (command.name + kind)).exists() for kind in (HELD, TAKEN))  # in the order in which a file has them
