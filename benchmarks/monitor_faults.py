"""Faults planted in real training runs, and runs in which nothing is wrong: what the monitor tells of them, as its alerts stand in the run's folder.

Each named fault is planted (`penstock.lab.ailments`) in PENSTOCK_SEEDS runs (1), from number PENSTOCK_FIRST_SEED (0) on, of a tiny model on one or
two ranks, which differ in seed, size of the model, moment and strength of the fault; where that is seconds, it is beyond twice what nine of ten steps
take here without any, so that the load of the machine does not hide it. Clean runs are of several kinds: optimizers, schedules, experts, a restart,
changes while they run.

    recall               share of the faults of which an alert of their kind was told (aim 0.95)
    delay_KIND           median steps from the fault to its alert (aims: non_finite 1, loss_spike 3, straggler 10, memory_leak 100); of a hang seconds
                         (aim 1)
    false_in_faults      alerts, notices left out, of those runs that are of none of the kinds which the fault may show as
    false_per_10000      the same of clean runs, for 10,000 steps of theirs (aim 1); clean_steps: how many there were
    missed, false        what was missed, and what was told wrongly, by name
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock.lab.ailments import VARIABLE
from penstock.monitor.alerts import Alert, read_alerts
from penstock.monitor.overview import last_steps
from penstock.monitor.series import Kinds, Series, read_kinds

SEEDS, FIRST = int(os.environ.get("PENSTOCK_SEEDS", "1")), int(os.environ.get("PENSTOCK_FIRST_SEED", "0"))
#: Steps of a clean run, steps after an alert that are watched too, and the longest that a run may take, seconds.
CLEAN_STEPS, AFTER, DEADLINE_S = 800, 15, 300.0
SETTINGS = [
    "data.path=stdlib", "data.max_bytes=2000000", "data.tokenizer=bytes", "model.layers=2", "model.heads=2", "batch.micro=4", "eval.every=0",
    "eval.sequences=4", "eval.sample_tokens=0", "snapshot.every=0", "metrics.peak_tflops=0.1", "metrics.tensorboard=false", "compile.enabled=off",
    "run.threads=1", "survive.enabled=on", "survive.patience_s=120", "alerts.console=false", "optim.warmup=20",
]  # fmt: skip
SIZES = (["model.dim=32", "model.context=32", "batch.global=16"], ["model.dim=64", "model.context=64", "batch.global=8"])
EXPERTS = ["model.moe.experts=8", "model.moe.active=2", "model.moe.dim=32"]


@dataclass(frozen=True)
class Fault:
    """A kind of alert, how it is planted ({s}: the step, {x}: a strength from `range`), on how many ranks, within how many steps it must be told, and
    as what else it may show.
    """

    kind: str
    plant: str
    range: tuple[float, float] = (0.0, 0.0)
    ranks: int = 1
    within: int = 60
    may: tuple[str, ...] = ()
    more: list[str] = field(default_factory=list)
    seconds: bool = False


_LOSS = ("loss_spike", "gradient_explosion", "divergence")
FAULTS = (
    Fault("non_finite", "nan:0:{s}", may=("run_failed", "rank_lost")),
    Fault("loss_spike", "spike:*:{s}:{x}", (1.5, 4.0), may=_LOSS),
    Fault("divergence", "explode:*:{s}:{x}", (-1.0, -0.2), within=400, may=_LOSS),  # uphill
    Fault("plateau", "rate:*:{s}:0", within=900, more=["train.steps=4000"]),
    Fault("gradient_explosion", "explode:*:{s}:{x}", (20.0, 200.0)),
    Fault("gradient_vanishing", "vanish:*:{s}:{x}", (1e-7, 1e-5), may=("plateau",)),
    Fault("throughput_drop", "slow:*:{s}:{x}", (0.3, 0.6), ranks=2, seconds=True),
    Fault("straggler", "slow:1:{s}:{x}", (0.15, 0.4), ranks=2, may=("throughput_drop", "communication_stall"), seconds=True),
    Fault("memory_leak", "leak:1:{s}:{x}", (1.5e6, 4e6), ranks=2, within=160),
    Fault("data_corruption", "poison:0:{s}", may=_LOSS),
    Fault("data_repetition", "repeat:0:{s}", may=("plateau", "data_corruption")),
    Fault("dead_experts", "experts:*:{s}", within=150, may=_LOSS, more=EXPERTS),
    Fault("communication_stall", "stall:*:{s}:{x}", (2.0, 4.0), ranks=2, may=("hang", "throughput_drop"), seconds=True),
    Fault("hang", "hang:0:{s}:{x}", (6.0, 9.0), may=("communication_stall", "throughput_drop", "straggler")),
    Fault("clock_skew", "clock:1:{s}:{x}", (2.0, 20.0), ranks=2),
)
CLEAN: dict[str, tuple[int, list[str]]] = {
    "muon, cosine": (1, ["optim.kind=muon", "optim.lr=3e-3"]),
    "adamw, wsd, two ranks": (2, ["optim.kind=adamw", "optim.schedule=wsd", "optim.decay=0.3"]),
    "evaluations and snapshots": (1, ["eval.every=50", "snapshot.every=60"]),
    "experts": (1, EXPERTS),
    "restart": (1, ["snapshot.every=200"]),
    "changes": (2, ["optim.kind=adamw"]),
}


@dataclass
class Came:
    """What was told in a run: alerts, of which those that are notices count only as hits, and steps taken."""

    alerts: list[Alert]
    steps: int

    def hit(self, kind: str, since: int) -> Alert | None:
        """The first alert of a kind that is told at the fault or later, or as what came with another's; a hang is told after the step before."""
        later = [one for one in self.alerts if max(one.step, one.since) >= since]
        return next((one for one in later if one.kind == kind or any(kind in also for also in one.also)), None)

    def wrong(self, may: Sequence[str], since: int) -> list[str]:
        """Alerts that are of something else, or of nothing yet."""
        told = [one for one in self.alerts if one.level != "notice" and (one.kind not in may or max(one.step, one.since) < since)]
        return [f"{one.kind}@{one.step}" + (f" rank {one.rank}" if one.rank is not None else "") for one in told]


def run() -> dict[str, float | str]:
    """All figures."""
    missed: list[str] = []
    false: list[str] = []
    delays: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-monitor-") as name:
        usual = _usual_step(Path(name))
        numbers = range(FIRST, FIRST + SEEDS)
        for number in numbers:
            for fault in FAULTS:
                _strike(Path(name), fault, number, usual, missed, false, delays)
        planted, in_faults = len(FAULTS) * SEEDS, len(false)
        steps = sum(_clean(Path(name), kind, number, false) for number in numbers for kind in CLEAN)
    figures: dict[str, float | str] = {"recall": 1 - len(missed) / planted, "faults": float(planted), "false_in_faults": float(in_faults)}
    figures |= {"false_per_10000": 1e4 * (len(false) - in_faults) / max(1, steps), "clean_steps": float(steps)}
    figures |= {f"delay_{kind}": statistics.median(found) for kind, found in delays.items()}
    return figures | {"missed": "; ".join(missed) or "none", "false": "; ".join(false) or "none"}


def _usual_step(folder: Path) -> float:
    """Seconds that nine of ten steps of two ranks take no more than, here and now."""
    run = folder / "usual"
    _train(run, 2, ["train.steps=60", *SIZES[0]], lambda came: False)
    [course] = Series(run / "metrics", read_kinds(run / "metrics") or Kinds()).courses(["time/step"])
    return statistics.quantiles(course.value[10:].tolist(), n=10)[-1]


def _strike(
    folder: Path, fault: Fault, number: int, usual: float, missed: list[str], false: list[str], delays: dict[str, list[float]]
) -> None:
    """Train with a fault, and take in what was told; a `usual` step's seconds scale those of faults."""
    chance = random.Random(f"{fault.kind}{number}")
    since, size = chance.randint(90, 160), chance.uniform(*fault.range) + 2 * usual * fault.seconds
    planted = fault.plant.format(s=since, x=size if fault.kind != "memory_leak" else int(size))
    sets = [f"run.seed={number}", f"train.steps={since + fault.within + AFTER}", *SIZES[number % 2], *fault.more]

    def enough(came: Came) -> bool:
        hit = came.hit(fault.kind, since)
        return came.steps >= (hit.step + AFTER if hit else since + fault.within)

    came = _train(folder / f"{fault.kind}-{number}", fault.ranks, sets, enough, planted)
    hit = came.hit(fault.kind, since)
    false += [f"{planted}: {told}" for told in came.wrong((fault.kind, *fault.may), since)]
    if hit is None:
        missed.append(f"{planted} (seed {number})")
    else:
        delays.setdefault(fault.kind, []).append(hit.evidence[0].value if fault.kind == "hang" else float(hit.step - since))
    _say(f"{fault.kind}: {planted}: {'missed' if hit is None else f'told at {hit.step}'}")


def _clean(folder: Path, kind: str, number: int, false: list[str]) -> int:
    """Train with nothing wrong; the steps taken."""
    ranks, more = CLEAN[kind]
    run, sets = folder / f"{kind.replace(' ', '-')}-{number}", [f"run.seed={number}", f"train.steps={CLEAN_STEPS}", *SIZES[number % 2], *more]
    changes = [["optim.lr=1e-3"], ["batch.global=32"], ["layout.shard=2"]] if kind == "changes" else []

    def enough(came: Came) -> bool:
        if changes and came.steps > CLEAN_STEPS - 200 * len(changes):
            _call(["change", run, *(word for setting in changes.pop(0) for word in ("--set", setting))])
        return kind == "restart" and came.steps > CLEAN_STEPS // 2

    came = _train(run, ranks, sets, enough)
    if kind == "restart":
        came = _watch(_started(["resume", run, "--nproc", ranks], ""), run, lambda came: False)
    false += [f"clean {kind}: {told}" for told in came.wrong((), 0)]
    _say(f"clean {kind}: {came.steps} steps, {len(came.wrong((), 0))} false")
    return came.steps


def _train(run: Path, ranks: int, sets: Sequence[str], enough: Callable[[Came], bool], planted: str = "") -> Came:
    words = [word for setting in [*SETTINGS, *sets] for word in ("--set", setting)]
    return _watch(_started(["train", *words, "--nproc", ranks, "--run-dir", run], planted), run, enough)


def _started(words: Sequence[object], planted: str) -> subprocess.Popen[bytes]:
    environment = os.environ | ({"PENSTOCK_LISTENER": "penstock.lab.ailments", VARIABLE: planted} if planted else {})
    command, nothing = [sys.executable, "-m", "penstock", *map(str, words)], subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdout=nothing, stderr=nothing)


def _watch(process: subprocess.Popen[bytes], run: Path, enough: Callable[[Came], bool]) -> Came:
    """Let a run go on until it ends by itself or there is enough of it; then it is asked to end."""
    end = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < end and not enough(_came(run)):
        time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return _came(run)


def _came(run: Path) -> Came:
    status = run / "metrics" / "monitor.json"
    try:
        steps = int(json.loads(status.read_text())["step"])
    except (OSError, ValueError, KeyError):
        steps = max(last_steps(run / "metrics").values(), default=0) if (run / "metrics").exists() else 0
    return Came(list(read_alerts(run).alerts.values()), steps)


def _call(words: Sequence[object]) -> None:
    subprocess.run([sys.executable, "-m", "penstock", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
