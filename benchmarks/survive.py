"""Seconds without a step when one of four ranks is killed, by what takes its place; and what it costs to be ready.

Four gloo ranks train a small model (two layers, one thread each). SIGKILL hits one that does not lead, PENSTOCK_SURVIVE_KILLS times for each way
(10); the seconds are the longest time without a finished step after the kill, by the rows of the metrics.

    standby_s, none_s, cold_s         median by survive.replace (aims 0.7, 0.7 and 8); _worst: the longest (aim 2 for the first two)
    torchrun_s                        the same below `torchrun --max-restarts=1`, which starts all ranks again: they go on from the last snapshot
    ready_cost                        median step with the supervisor over that with torch's elastic launcher, less one (aim 0.01)
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from penstock.monitor import MetricStore

RANKS, KILLS, STEPS, DEADLINE_S = 4, int(os.environ.get("PENSTOCK_SURVIVE_KILLS", "10")), 4000, 400.0
SETTINGS = [
    "data.path=stdlib", "data.max_bytes=200000", "data.tokenizer=bytes", "model.layers=2", "model.dim=64", "model.heads=2", "model.context=64",
    "batch.global=12", "batch.micro=3", "optim.warmup=2", "eval.every=0", "eval.sequences=4", "eval.sample_tokens=0", "snapshot.every=20",
    "metrics.peak_tflops=0.1", "run.threads=1", "metrics.tensorboard=false", "compile.enabled=off",
]  # fmt: skip


def run() -> dict[str, float | str]:
    """All figures."""
    figures: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-survive-") as name:
        folder = Path(name)
        for way in ("standby", "none", "cold"):
            kills = 1 if way == "none" else KILLS
            sets = ["survive.enabled=on", f"survive.replace={way}"]
            seconds = [s for turn in range(KILLS // kills) for s in gaps(folder / f"{way}-{turn}", kills, sets)]
            figures |= {f"{way}_s": statistics.median(seconds), f"{way}_s_worst": max(seconds)}
        figures["torchrun_s"] = statistics.median(gaps(folder / "torchrun", 1, ["survive.enabled=off"], torchrun=True))
        steps = {way: [step_s(folder / f"{way}-{turn}", way) for turn in range(3)] for way in ("on", "off")}
        figures["ready_cost"] = statistics.median(steps["on"]) / statistics.median(steps["off"]) - 1
    return figures


def gaps(folder: Path, kills: int, sets: list[str], torchrun: bool = False) -> list[float]:
    """For each of so many kills the longest time without a step after it."""
    process, found = start(folder, sets, torchrun), []
    try:
        for _ in range(kills):
            before = wait_for_step(folder, last_step(folder) + 30)
            rank = victim(process, torchrun, spares="survive.replace=standby" in sets)
            began = time.time()
            rank.send_signal(signal.SIGKILL)
            wait_for_step(folder, before + 3)
            rows = [row for row in MetricStore(folder / "metrics").read("train") if row["time"] > began + 0.01]
            found.append(max(b - a for a, b in zip([began, *(row["time"] for row in rows)], [row["time"] for row in rows])))
    finally:
        process.terminate()
        process.wait(timeout=60)
    return found


def start(folder: Path, sets: list[str], torchrun: bool = False, steps: int = STEPS) -> subprocess.Popen[bytes]:
    """A run of four ranks."""
    settings = [argument for setting in [*SETTINGS, f"train.steps={steps}", *sets] for argument in ("--set", setting)]
    if not torchrun:
        command = [sys.executable, "-m", "penstock", "train", *settings, "--nproc", str(RANKS), "--run-dir", str(folder)]
    else:  # a job that is started again has a run to go on with
        ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "--max-restarts=1"]
        again = f'[ -e {folder}/run.json ] && [ "$TORCHELASTIC_RESTART_COUNT" != 0 ]'
        words = " ".join(f"'{word}'" for word in settings)
        penstock = f"{sys.executable} -m penstock"
        script = f"if {again}; then exec {penstock} resume {folder}; else exec {penstock} train {words} --run-dir {folder}; fi"
        command = [*ranks, "--no-python", "bash", "-c", script]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def step_s(folder: Path, way: str) -> float:
    """Median seconds of a step of a short run that nobody disturbs."""
    process = start(folder, [f"survive.enabled={way}"], steps=200)
    process.wait(timeout=DEADLINE_S)
    return statistics.median(row["step_s"] for row in MetricStore(folder / "metrics").read("train")[20:])


def last_step(folder: Path) -> int:
    """The last step that was written down."""
    row = MetricStore(folder / "metrics").last("train") if (folder / "metrics").exists() else None
    return int(row["step"]) if row else 0


def wait_for_step(folder: Path, step: int) -> int:
    """Wait until a step has been written down; the one that was then."""
    end = time.monotonic() + DEADLINE_S
    while (now := last_step(folder)) < step:
        if time.monotonic() > end:
            raise TimeoutError(f"step {step} did not come within {DEADLINE_S:.0f} s")
        time.sleep(0.01)
    return now


def victim(process: subprocess.Popen[bytes], torchrun: bool, spares: int) -> psutil.Process:
    """A rank of the run that does not lead: the youngest that is no standby."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        words = child.cmdline()
        if torchrun and child.environ().get("RANK") == "1":
            return child
        if "penstock.engine.survive.member" in words:
            found[int(words[words.index("penstock.engine.survive.member") + 2])] = child
    return found[sorted(found)[-1 - spares]]
