"""Who hangs: a step that takes far longer than usual, and of its ranks the one that waits for nobody.

The usual time of a step is the median of the last `SEEN` that the ranks told of. A step that takes 3 times that (and `survive.patience_s`, if longer)
is too long; what comes before the third step of a generation, evaluations, snapshots and the end of a run have no usual time, and the
deadlines of the exchanges (`layout.timeout_s`) have to do. Then every rank is asked for its stacks (`faulthandler`, on SIGUSR1), which are
left in the run's folder. Ranks whose main thread is inside an exchange wait; the one that does not, that is stopped, or that does not answer is
the one they wait for. If none waits, all are slow, and nobody is blamed.

Also watched: that ranks leave a generation together. Some may have met a lost connection and the others not; and a thread can be stuck in a group
that is no more (seen with gloo, whose wait for a connection that was closed does not always end).

Cost: reading a few numbers some times a second, in the supervisor.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from penstock.engine.guard.heart import Beat
from penstock.engine.survive.processes import Member

#: Steps of which the median is the usual time, steps of a generation before it counts, and how many usual steps are too long.
SEEN, WARM_UP, USUAL = 20, 3, 3.0
#: Seconds that ranks may go on while others have lost their connection: most often they meet it too, or are about to end with the error behind it.
SPLIT_S = 1.0
#: Seconds that ranks have to write their stacks.
ANSWER_S = 0.5
#: Phases that belong to a step.
STEP = ("step", "data", "forward_backward", "exchange", "optimizer", "check")
#: Where a main thread is that waits for other ranks.
_WAITING = ("/torch/distributed/", "/penstock/comm/")


def stacks_file(folder: Path, number: int) -> Path:
    """Where process `number` writes its stacks when asked to."""
    return folder / "stacks" / f"process-{number}.txt"


class StepWatch:
    """Looks whether the steps of a run go on."""

    def __init__(self, patience_s: float) -> None:
        self._patience = patience_s
        self._usual: deque[float] = deque(maxlen=SEEN)
        self._generation, self._since, self._taken = -1, 0.0, 0
        self._whole = self._current = time.monotonic()

    def overdue(self, beats: list[Beat], generation: int) -> bool:
        """Whether the ranks, of which these are the last beats, have been in one step for too long."""
        now = time.monotonic()
        here = [beat for beat in beats if beat.generation == generation]
        taken = max((beat.taken for beat in here), default=0)
        if (taken, generation) != (self._taken, self._generation):
            self._taken, self._generation, self._since = taken, generation, now
            if taken:
                self._usual.append(max(beat.step_s for beat in here))
        in_step = len(here) == len(beats) and all(beat.phase in STEP for beat in beats)
        if not in_step:
            self._since = now
        return bool(self._patience) and taken >= WARM_UP and now - self._since > self._limit

    def split(self, beats: list[Beat], generation: int) -> bool:
        """Whether some ranks of a generation have long lost their connection, and others not."""
        now, lost = time.monotonic(), [beat.generation == generation and beat.phase == "broken" for beat in beats]
        if not any(lost) or all(lost):
            self._whole = now
        return now - self._whole > SPLIT_S

    def left_behind(self, beats: list[Beat], generation: int) -> list[int]:
        """Ranks that have been in a step of an earlier generation for longer than a step may take, while others are in this one."""
        now, behind = time.monotonic(), [rank for rank, beat in enumerate(beats) if 0 <= beat.generation < generation and beat.phase in STEP]
        if not behind or len(behind) == len(beats):
            self._current = now
        return behind if self._patience and now - self._current > max(self._limit, SPLIT_S) else []

    @property
    def _limit(self) -> float:
        """Seconds that a step may take."""
        return max(self._patience, USUAL * median(self._usual)) if self._usual else self._patience

    def forgive(self) -> None:
        """Give the step as long again."""
        self._since = time.monotonic()


def blame(folder: Path, members: Mapping[int, Member]) -> tuple[list[int], bool]:
    """Ranks (by which `members` are given) that hang, and whether others wait for them; stacks are left in the folder."""
    stopped = [rank for rank, member in members.items() if _is_stopped(member.pid)]
    for rank, member in members.items():
        file = stacks_file(folder, member.number)
        if file.exists():
            file.write_text("", encoding="utf-8")
        if rank not in stopped:
            member.send_signal(signal.SIGUSR1)
    time.sleep(ANSWER_S)
    waiting = {rank for rank, member in members.items() if rank not in stopped and waits(_read(stacks_file(folder, member.number)))}
    return [rank for rank in members if rank not in waiting], bool(waiting)


def waits(stacks: str) -> bool:
    """Whether the thread that answered, the main one, is inside an exchange with other ranks."""
    _, found, current = stacks.rpartition("Current thread")
    frames = [line for line in current.split("\n\n")[0].splitlines() if line.lstrip().startswith("File ")]
    return bool(found) and any(place in frame for frame in frames[:3] for place in _WAITING)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _is_stopped(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in "Tt"
