"""Seconds without a step when a rank of four is lost, by what takes its place; how soon it is noticed; goodput; and what it costs to be ready.

Four gloo ranks train a small model (two layers, one thread each). The fault lab strikes them at known steps, PENSTOCK_SURVIVE_KILLS times each way
(10); seconds are the longest time without a finished step after the strike, by the rows of the metrics.

    standby_s, none_s, cold_s         SIGKILL, median by survive.replace (aims 0.7, 0.7 and 8); _worst: the longest (aim 2 for the first two)
    standby_ready                     share of the kills at which the standby was ready; only those count in standby_s
    again                             most steps computed again after a kill (aim 1)
    torchrun_s                        the same below `torchrun --max-restarts=1`, which starts all ranks again: they go on from the last snapshot
    death_s, hang_steps               from the strike to its being noticed: a death (aim 0.5 s); a stopped rank, in usual steps (aim 3), median
    goodput                           share of the time in which steps are taken that last, with a kill a minute and a standby, for
                                      PENSTOCK_SURVIVE_MINUTES (2; aim 0.95 over 20)
    ready_cost                        median step of ranks that are watched over, over that of ranks that are not, less one (aim 0.01)
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from penstock.lab.chaos import Command, Ended, Fault, Limits, run_with_faults, seconds_without_step
from penstock.monitor import MetricStore
from penstock.store import read_history

RANKS, DEADLINE_S = 4, 400.0
KILLS, MINUTES = int(os.environ.get("PENSTOCK_SURVIVE_KILLS", "10")), float(os.environ.get("PENSTOCK_SURVIVE_MINUTES", "2"))
SETTINGS = [
    "data.path=stdlib", "data.max_bytes=200000", "data.tokenizer=bytes", "model.layers=2", "model.dim=64", "model.heads=2", "model.context=64",
    "batch.global=12", "batch.micro=3", "optim.warmup=2", "eval.every=0", "eval.sequences=4", "eval.sample_tokens=0", "snapshot.every=20",
    "metrics.peak_tflops=0.1", "run.threads=1", "metrics.tensorboard=false", "metrics.dashboard=false", "compile.enabled=off",
]  # fmt: skip
#: Steps between two strikes, in which a standby has time to start, and that a run without any takes.
APART, PLAIN = {"standby": 400, "none": 30, "cold": 30}, 200


@dataclass(frozen=True)
class Seen:
    """What became of one strike: seconds without a step, those before it was noticed, steps computed again, and what was done."""

    seconds: float
    noticed_s: float
    again: int
    how: str


def run() -> dict[str, float | str]:
    """All figures."""
    figures: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-survive-") as name:
        folder = Path(name)
        seen = {way: [one for turn, kills in enumerate(portions(way)) for one in struck(folder / f"{way}-{turn}", way, kills)] for way in APART}
        ready = [one for one in seen["standby"] if "standby" in one.how]
        for way, found in (seen | {"standby": ready or seen["standby"]}).items():
            figures |= {f"{way}_s": statistics.median(one.seconds for one in found), f"{way}_s_worst": max(one.seconds for one in found)}
        everything = [one for found in seen.values() for one in found]
        figures |= {"standby_ready": len(ready) / len(seen["standby"]), "again": float(max(one.again for one in everything))}
        figures |= {"torchrun_s": torchrun_gap(folder / "torchrun"), "death_s": statistics.median(one.noticed_s for one in everything)}
        steps = {way: [step_s(folder / f"{way}-{turn}", way) for turn in range(3)] for way in ("on", "off")}
        usual = statistics.median(steps["on"])
        hung = struck(folder / "hung", "cold", max(1, KILLS // 3), "hang-stopped", ["survive.patience_s=0.05"])
        figures |= {"hang_steps": statistics.median(one.noticed_s for one in hung) / usual, "goodput": goodput(folder / "goodput", usual)}
        figures["ready_cost"] = usual / statistics.median(steps["off"]) - 1
    return figures


def portions(way: str) -> list[int]:
    """Kills of each run: where nobody takes a lost rank's place, a run can lose all but one."""
    most = RANKS - 1 if way == "none" else KILLS
    return [min(most, KILLS - before) for before in range(0, KILLS, most)]


def struck(folder: Path, way: str, count: int, kind: str = "kill-forward", sets: Sequence[str] = ()) -> list[Seen]:
    """What becomes of so many strikes on ranks that take turns."""
    apart = APART[way]
    faults = [Fault(number, kind, number * apart, "forward_backward", number % RANKS) for number in range(1, count + 1)]
    ended = train_under(folder, faults, [f"survive.replace={way}", f"train.steps={(count + 1) * apart}", *sets])
    events = [event for event in read_history(ended.run).events if event.kind == "recovery"]
    found = []
    for fault in faults:
        event = next(event for event in events if event.seq > ended.marks[str(fault.number)]["seq"])
        seconds = seconds_without_step(fault, ended)
        again = fault.step + 1 - (event.step or 0)
        found.append(Seen(seconds, seconds - event.data["recovery"]["seconds"], again, event.text))
    return found


def train_under(folder: Path, faults: Sequence[Fault], sets: Sequence[str]) -> Ended:
    """Train with faults, to the end."""
    command = Command(None, (*SETTINGS, "survive.enabled=on", *sets), RANKS)
    ended = run_with_faults(command, folder, tuple(faults), Limits(DEADLINE_S, float("inf")), lambda line: print(line, file=sys.stderr, flush=True))
    if ended.defect:
        raise RuntimeError(ended.defect)
    return ended


def goodput(folder: Path, usual_s: float) -> float:
    """Share of the time in steps that last, of a run with a kill at a random moment of every minute."""
    draw, minute, minutes = random.Random(0), max(10, round(60 / usual_s)), max(1, round(MINUTES))
    steps = [number * minute + draw.randrange(5, minute) for number in range(minutes)]
    faults = [Fault(number, "kill-forward", step, "forward_backward", draw.randrange(RANKS)) for number, step in enumerate(steps, 1)]
    ended = train_under(folder, faults, ["survive.replace=standby", f"train.steps={minutes * minute}"])
    usual = statistics.median(after - before for before, after in pairwise(ended.times))
    lost = sum(max(0.0, seconds_without_step(fault, ended) - usual) for fault in faults)
    return 1 - lost / (ended.times[-1] - ended.times[0])


def step_s(folder: Path, way: str) -> float:
    """Median seconds of a step of a short run that nobody disturbs."""
    sets = [argument for setting in [*SETTINGS, f"train.steps={PLAIN}", f"survive.enabled={way}"] for argument in ("--set", setting)]
    command = [sys.executable, "-m", "penstock", "train", *sets, "--nproc", str(RANKS), "--run-dir", str(folder)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=DEADLINE_S, check=True)
    return statistics.median(row["step_s"] for row in MetricStore(folder / "metrics").read("train")[20:])


def torchrun_gap(folder: Path) -> float | str:
    """The longest time without a step after rank 1 of a job below torchrun was killed, which is started again as a whole; or that none came."""
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "--max-restarts=1"]
    again = f'[ -e {folder}/run.json ] && [ "$TORCHELASTIC_RESTART_COUNT" != 0 ]'  # a job that is started again has a run to go on with
    words = " ".join(f"--set '{setting}'" for setting in [*SETTINGS, "train.steps=4000", "survive.enabled=off"])
    penstock = f"{sys.executable} -m penstock"
    script = f"if {again}; then exec {penstock} resume {folder}; else exec {penstock} train {words} --run-dir {folder}; fi"
    process = subprocess.Popen([*ranks, "--no-python", "bash", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        before = wait_for_step(folder, 30)
        victim = next(child for child in psutil.Process(process.pid).children(recursive=True) if child.environ().get("RANK") == "1")
        began = time.time()
        victim.send_signal(signal.SIGKILL)
        wait_for_step(folder, before + 3)
        rows = [row["time"] for row in MetricStore(folder / "metrics").read("train") if row["time"] > began + 0.01]
        return max(after - before for before, after in pairwise([began, *rows]))
    except TimeoutError as error:
        return str(error)
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for_step(folder: Path, step: int) -> int:
    """Wait until a step has been written down; the one that was then."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        row = MetricStore(folder / "metrics").last("train") if (folder / "metrics").exists() else None
        if row and row["step"] >= step:
            return int(row["step"])
        time.sleep(0.01)
    raise TimeoutError(f"step {step} did not come within {DEADLINE_S:.0f} s")
