"""A pipeline one rank of which becomes slower in the middle of a run: when that is noticed, what is changed, and what it brings.

Four gloo ranks train a model of 24 layers whose layers sleep for `NAP` seconds in each work (so that two cores hold four ranks); from step
`SLOW_FROM` on rank 2 sleeps 30 % longer. The figures are those of the run's events and of its metrics:

    noticed_after              steps from the slowdown to the change
    before, during, after      tokens per second: medians of the steps before the slowdown, from it to the change, and from five steps after that
    recovered                  part of the loss of throughput that the change brought back
    told                       what the report says

Nothing is compared with a peer: torch's schedules do not change while a run goes on.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.comm import join_world, leave_world
from penstock.config import load_config
from penstock.engine import start_ranks
from penstock.engine.pipeline import Pipeline
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.monitor import MetricStore
from penstock.parallel.pipeline.stage import DecoderStage
from penstock.store import Run

NAP, SLOW_RANK, SLOW_FROM, FACTOR, STEPS = 0.004, 2, 30, 1.3, 70
SETTINGS = [
    "data.path=stdlib", "data.max_bytes=200000", "data.tokenizer=bytes", "model.layers=24", "model.dim=16", "model.heads=2", "model.context=32",
    "batch.global=8", "batch.micro=1", f"train.steps={STEPS}", "optim.warmup=2", "eval.every=0", "eval.sequences=4", "eval.sample_tokens=0",
    "snapshot.every=0", "metrics.peak_tflops=0.1", "run.threads=1", "layout.pipeline=4", "metrics.tensorboard=false", "metrics.dashboard=false",
]  # fmt: skip


def run() -> dict[str, float | str]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="penstock-slow-") as name:
        path = make_run(load_config(None, SETTINGS), "slow", "benchmark", Path(name) / "run", None).path
        start_ranks("benchmarks.slow_rank", path, 4, 0, "this is a fault of the benchmark; see the traceback")
        store = MetricStore(path / "metrics")
        speeds = {row["step"]: row["tokens_per_s"] for row in store.read("train")}
        events = [row for row in store.read("event") if row["what"] == "pipeline"]
    changed = next((row for row in events if row["step"] > SLOW_FROM and "made again" in row["text"]), None)
    figures: dict[str, float | str] = {"before": median(speeds, 12, SLOW_FROM)}
    if changed is not None:
        step = int(changed["step"])
        figures |= {"noticed_after": float(step - SLOW_FROM), "during": median(speeds, SLOW_FROM + 1, step), "after": median(speeds, step + 5, STEPS)}
        before, during, after = (float(figures[key]) for key in ("before", "during", "after"))
        figures["recovered"] = (after - during) / (before - during) if before > during else 0.0
    return figures | {"told": " | ".join(f"step {row['step']}: {row['text']}" for row in events)}


def median(speeds: dict[int, float], first: int, last: int) -> float:
    """Median tokens per second over steps."""
    return statistics.median(speed for step, speed in speeds.items() if first <= step <= last)


def nap(rank: int, slow_rank: int, slow_from: int, factor: float, seconds: float) -> None:
    """Let this process' stages sleep in proportion to their layers, those of `slow_rank` `factor` times as long from a step on."""
    steps = [0]
    train = Pipeline.train

    def counted(self: Pipeline, *args: Any) -> Any:
        steps[0] += 1
        return train(self, *args)

    def napping(work: Callable[..., Any], both: bool) -> Callable[..., Any]:
        def worked(self: DecoderStage, *args: Any) -> Any:
            result = work(self, *args)
            slow = factor if rank == slow_rank and steps[0] > slow_from else 1.0
            time.sleep(seconds * slow * (len(self.part.layers) + self.part.head) * (2 if both and not args[-1] else 1))
            return result

        return worked

    Pipeline.train = counted  # type: ignore[method-assign,assignment]
    for name in ("forward", "backward", "weights"):
        setattr(DecoderStage, name, napping(getattr(DecoderStage, name), name == "backward"))


def main(folder: Path) -> None:
    """One rank of the run in the folder."""
    world = join_world("cpu", 120.0)
    nap(world.rank, SLOW_RANK, SLOW_FROM, FACTOR, NAP)
    run_rank(Run(folder), world, supervised=True)
    leave_world(world)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
