"""One run of the user's command under a plan of faults, started again with `penstock resume` where the fault was to end it; it cannot hang.

The command runs as a process of its own, with what it says in a log. Whatever happens in a run leaves a trace in its files: a row of metrics, an
event, a snapshot, a fault that strikes. When there has been none for `patience_s`, or the run takes longer than its deadline, every rank is asked
for its stacks (SIGUSR1) and the supervisor too (SIGABRT, with Python's faulthandler on), all are killed, and the run is a defect.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from penstock.engine.guard.heart import LISTENER
from penstock.lab.chaos.desk import FOLDER, Desk
from penstock.lab.chaos.plan import Fault
from penstock.monitor import MetricStore
from penstock.store import current_writer

#: Seconds between two looks; that processes have to write their stacks; and that ranks have to end after their supervisor.
LOOK_S, STACKS_S, ENDED_S = 0.1, 2.0, 30.0
INTERRUPTED = 130
#: Files of a run that change as it goes on.
TRACES = ("metrics/train.jsonl", "metrics/eval.jsonl", "history.jsonl", "snapshots", "packs")
#: Kinds after which the run is to be resumed, by the exit code of the command.
ENDS = {"stop-resume": INTERRUPTED, "supervisor": -signal.SIGKILL}


@dataclass(frozen=True)
class Command:
    """The user's command: `penstock train [config] --set … --nproc ranks`."""

    config: str | None
    sets: tuple[str, ...]
    ranks: int

    def train(self, run: Path) -> list[str]:
        """Its words, for a run in a folder of ours, which nobody looks at."""
        sets = [word for setting in (*self.sets, "metrics.dashboard=false") for word in ("--set", setting)]
        return ["train", *([self.config] if self.config else []), *sets, "--nproc", str(self.ranks), "--run-dir", str(run), "--json"]

    def resume(self, run: Path) -> list[str]:
        """The words that go on with it."""
        return ["resume", str(run), "--nproc", str(self.ranks), "--json"]


@dataclass(frozen=True)
class Ended:
    """How a run ended: its summary, what was wrong (empty: nothing), seconds, how often it was resumed, which faults struck, and the times of steps.

    `times` are unix seconds at which steps were finished, those of steps that were taken again too as far as they were seen.
    """

    run: Path
    summary: dict[str, Any]
    defect: str
    seconds: float
    resumed: int
    marks: dict[str, dict[str, Any]]
    times: tuple[float, ...] = ()

    def last_struck(self, faults: Sequence[Fault]) -> Fault | None:
        """That of the faults which was the last to strike."""
        struck = [(mark["time"], fault.number, fault) for fault in faults if (mark := self.marks.get(str(fault.number))) and not mark["skipped"]]
        return max(struck)[2] if struck else None


@dataclass(frozen=True)
class Limits:
    """Seconds in which something must happen, and those that a run may take."""

    patience_s: float
    deadline_s: float


def run_with_faults(command: Command, folder: Path, faults: tuple[Fault, ...], limits: Limits, say: Callable[[str], None]) -> Ended:
    """Run the command in `folder`/run under `faults` (none: undisturbed), to its end."""
    desk, run, log, began = Desk(folder / "faults"), folder / "run", folder / "log.txt", time.monotonic()
    desk.lay_out(run, faults)
    words, resumed, times = command.train(run), 0, set[float]()
    tell = _teller(desk, faults, say, MetricStore(run / "metrics"), times)
    while True:
        with _started(words, desk, log, folder / "answer.json", bool(faults)) as process:
            defect = _watch(process, desk, run, log, limits, began, tell)
        if defect or process.returncode == 0:
            break
        expected = [ENDS[fault.kind] for fault in faults if fault.kind in ENDS and _struck(desk, fault)]
        if len(expected) <= resumed or process.returncode not in expected:
            defect = f"`penstock {words[0]}` ended with exit code {process.returncode}: {_last_line(log)}"
            break
        if writer := _writer_left(run):
            defect = f"the run is still written by {writer}, {ENDED_S:.0f} s after its supervisor ended"
            break
        words, resumed = command.resume(run), resumed + 1
    summary = _summary(folder / "answer.json")
    if not defect and summary.get("state") != "finished":
        defect = f"the run did not come to its end: {summary.get('state', 'it printed no summary')}"
    times |= {row["time"] for row in MetricStore(run / "metrics").read("train")}
    return Ended(run, summary, defect, time.monotonic() - began, resumed, desk.marks(), tuple(sorted(times)))


@contextmanager
def _started(words: list[str], desk: Desk, log: Path, answer: Path, planted: bool) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process; killed on leaving if it still runs."""
    environment = os.environ | ({LISTENER: "penstock.lab.chaos.strike", FOLDER: str(desk.folder)} if planted else {})
    with open(log, "ab") as said, open(answer, "wb") as printed:
        said.write(f"\n$ penstock {' '.join(words)}\n".encode())
        said.flush()
        argv = [sys.executable, "-X", "faulthandler", "-m", "penstock", *words]
        process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=printed, stderr=said)
    desk.set_supervisor(process.pid)
    try:
        yield process
    finally:
        if process.poll() is None:
            _kill(process, desk)


def _watch(
    process: subprocess.Popen[bytes], desk: Desk, run: Path, log: Path, limits: Limits, began: float, tell: Callable[[], None]
) -> str:
    """Wait for the command's end; what is wrong if nothing happens for too long, or it takes too long. All its processes have ended then."""
    seen, since = _traces(desk, run), time.monotonic()
    while process.poll() is None:
        time.sleep(LOOK_S)
        tell()
        now = time.monotonic()
        if (traces := _traces(desk, run)) != seen:
            seen, since = traces, now
        if now - since > limits.patience_s:
            return f"nothing happened for {limits.patience_s:.0f} s; {_end_with_stacks(process, desk, run, log)}"
        if now - began > limits.deadline_s:
            return f"it came to no end within {limits.deadline_s:.0f} s; {_end_with_stacks(process, desk, run, log)}"
    tell()
    return ""


def _traces(desk: Desk, run: Path) -> list[int]:
    """What changes when anything happens in a run."""
    found = []
    for path in (run, *(run / name for name in TRACES), desk.folder / "marks"):
        with suppress(OSError):
            found.append(path.stat().st_mtime_ns)
    return found


def _end_with_stacks(process: subprocess.Popen[bytes], desk: Desk, run: Path, log: Path) -> str:
    """Let every process of a run write where it is, and kill it; say where that is found."""
    for pid in desk.ranks():
        for number in (signal.SIGCONT, signal.SIGUSR1):
            _send(pid, number)
    time.sleep(STACKS_S)
    _kill(process, desk, signal.SIGABRT)
    return f"stacks of the ranks are in {run / 'stacks'}, the supervisor's in {log}"


def _kill(process: subprocess.Popen[bytes], desk: Desk, number: int = signal.SIGKILL) -> None:
    """Kill the command, which gets a signal before if that is to be another, with all its processes: one that is just starting outlives it else."""
    left = psutil.Process(process.pid).children(recursive=True)
    for pid in desk.ranks():
        with suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(pid))
    process.send_signal(number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STACKS_S)
    for other in left:
        with suppress(psutil.NoSuchProcess):
            other.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(left, STACKS_S)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _teller(desk: Desk, faults: tuple[Fault, ...], say: Callable[[str], None], rows: MetricStore, times: set[float]) -> Callable[[], None]:
    """A function that says of each fault that it has struck, once, and notes when the last step was finished: its row may be dropped later."""
    untold = {str(fault.number): fault for fault in faults}

    def tell() -> None:
        for name in [name for name in untold if desk.has_mark(name)]:
            fault = untold.pop(name)
            say(f"fault {name}: {fault.kind} at step {fault.step}, {fault.phase}, rank {fault.rank}")
        if row := rows.last("train"):
            times.add(row["time"])

    return tell


def _struck(desk: Desk, fault: Fault) -> bool:
    mark = desk.has_mark(str(fault.number))
    return mark is not None and not mark["skipped"]


def _writer_left(run: Path) -> str | None:
    """Who still writes the run, some time after its supervisor's end."""
    end = time.monotonic() + ENDED_S
    while (writer := current_writer(run)) and time.monotonic() < end:
        time.sleep(LOOK_S)
    return writer


def _summary(answer: Path) -> dict[str, Any]:
    """What the command printed with `--json`; nothing if it did not come to that."""
    with suppress(ValueError):
        told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return told
    return {}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
