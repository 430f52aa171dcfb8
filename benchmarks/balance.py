"""One of four data-parallel ranks becomes twice as slow in the middle of a run: what measured shares make of it, against even and ideal ones.

Four gloo ranks train a tiny model whose every sequence takes `NAP` seconds more, asleep, so that two cores hold four ranks. From step `SLOW_FROM`
to `SLOW_UNTIL` rank 2 is stalled during half of every `PERIOD` (a duty cycle: its sleep goes on only in the other half), which makes it twice as
slow, and unevenly so from step to step. The same run three times: with even shares (`off`), with the ideal ones from the very step on at which
the rank slows down, as only an oracle could (`ideal`: 16, 16, 8 and 16 of 56 sequences), and with `balance.data = "measured"`.

    even, ideal, measured      tokens per second by the median step, from 20 steps after the slowdown to its end
    even_of_ideal              what even shares reach (by arithmetic 4/7)
    measured_of_ideal          what measured shares reach; aim: at least 0.95
    measured_of_arithmetic     the same against 56 sequences in 16 · NAP seconds, no other work and no exchange counted
    steps_to_95                steps from the slowdown until five steps together reach 95 % of the ideal; aim: at most 20
    even_again_after           steps from the recovery until all shares are even again
    before, after              what measured shares reach of even ones before the slowdown, and from ten steps after the recovery
    told                       what the run says

`PYTHONPATH=src python -m benchmarks balance`. Nothing is compared with a peer: no trainer at hand moves sequences between data-parallel ranks.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from penstock.comm import join_world, leave_world
from penstock.config import load_config
from penstock.data import Batch
from penstock.engine import start_ranks
from penstock.engine.build import Core, Parts
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.tune import balance
from penstock.monitor import MetricStore
from penstock.parallel.shares import Rules, Shares
from penstock.store import Run

RANKS, SEQUENCES, NAP, PERIOD, SLOW_RANK, IDEAL = 4, 56, 0.02, 0.05, 2, (16, 16, 8, 16)
SLOW_FROM, SLOW_UNTIL, STEPS, SETTLED, TOGETHER = 20, 70, 100, 20, 5
SETTINGS = [
    "data.path=stdlib", "data.max_bytes=200000", "data.tokenizer=bytes", "model.layers=1", "model.dim=16", "model.heads=2", "model.context=32",
    f"batch.global={SEQUENCES}", "batch.micro=16", f"train.steps={STEPS}", "optim.warmup=2", "eval.every=0", "eval.sequences=4",
    "eval.sample_tokens=0", "snapshot.every=0", "metrics.peak_tflops=0.1", "run.threads=1", "metrics.tensorboard=false", "metrics.dashboard=false",
    "compile.enabled=off",
]  # fmt: skip


def run() -> dict[str, float | str]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="penstock-balance-") as name:
        runs = {way: train(Path(name) / way, way) for way in ("even", "ideal", "measured")}
    tokens = SEQUENCES * 32
    slow = {way: speed(rows, SLOW_FROM + SETTLED, SLOW_UNTIL) for way, (rows, _) in runs.items()}
    measured, even = runs["measured"][0], runs["even"][0]
    near = [step for step in range(SLOW_FROM, SLOW_UNTIL - TOGETHER) if speed(measured, step, step + TOGETHER) >= 0.95 * slow["ideal"]]
    back = [step for step, row in measured.items() if step > SLOW_UNTIL and row["share_min"] == row["share_max"]]
    figures: dict[str, float | str] = {
        **slow,
        "even_of_ideal": slow["even"] / slow["ideal"],
        "measured_of_ideal": slow["measured"] / slow["ideal"],
        "measured_of_arithmetic": slow["measured"] / (tokens / (max(IDEAL[0], 2 * IDEAL[SLOW_RANK]) * NAP)),
        "before": speed(measured, 5, SLOW_FROM) / speed(even, 5, SLOW_FROM),
        "after": speed(measured, SLOW_UNTIL + 10, STEPS) / speed(even, SLOW_UNTIL + 10, STEPS),
    }
    if near:
        figures["steps_to_95"] = float(near[0] - SLOW_FROM)
    if back:
        figures["even_again_after"] = float(back[0] - 1 - SLOW_UNTIL)
    return figures | {"told": " | ".join(runs["measured"][1])}


def train(path: Path, way: str) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """A run's rows by step (the first is 1), and its events of balancing."""
    config = load_config(None, [*SETTINGS, f"balance.data={'off' if way == 'even' else 'measured'}"])
    run = make_run(config, way, "benchmark", path, None)
    start_ranks("benchmarks.balance", run.path, RANKS, 0, "this is a fault of the benchmark; see the traceback")
    store = MetricStore(run.path / "metrics")
    told = [f"step {row['step']}: {row['text']}" for row in store.read("event") if row["what"] == "balance"]
    return {row["step"]: row for row in store.read("train")}, told


def speed(rows: dict[int, dict[str, Any]], after: int, until: int) -> float:
    """Tokens per second by the median of the steps after `after` steps up to `until`."""
    return SEQUENCES * 32 / statistics.median(rows[step]["step_s"] for step in range(after + 1, until + 1))


def work(seconds: float, stalled: bool) -> None:
    """Take so long; where `stalled`, going on only in the first half of every period."""
    while seconds > 0:
        now = time.monotonic() % PERIOD
        if stalled and now >= PERIOD / 2:
            time.sleep(PERIOD - now)
            continue
        begun = time.perf_counter()
        time.sleep(min(seconds, PERIOD / 2 - now) if stalled else seconds)
        seconds -= time.perf_counter() - begun


def slowed(step: int) -> bool:
    """Whether the step after so many steps is one in which a rank is slow."""
    return SLOW_FROM <= step < SLOW_UNTIL


def emulate(rank: int, way: str) -> None:
    """Let every sequence take longer in this process, and give an oracle's shares where that is the way."""
    real, oracle = Core.loss, balance.DataBalancer.after_step

    def loss(self: Parts, batch: Batch) -> Tensor:
        result = real(self, batch)
        work(NAP * len(batch.tokens_bt), rank == SLOW_RANK and slowed(self.progress.step))
        return result

    def after_step(self: balance.DataBalancer, parts: Parts) -> None:
        def known(seconds: list[float], shares: Shares, rules: Rules) -> Shares:
            return IDEAL if slowed(parts.progress.step) else rules.even

        vars(balance)["next_shares"] = known
        oracle(self, parts)

    Core.loss = loss  # type: ignore[method-assign,assignment]
    if way == "ideal":
        balance.DataBalancer.after_step = after_step  # type: ignore[method-assign]


def main(folder: Path) -> None:
    """One rank of the run in the folder, whose name says which way shares are made."""
    world = join_world("cpu", 120.0)
    emulate(world.rank, folder.name)
    run_rank(Run(folder), world, supervised=True)
    leave_world(world)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
