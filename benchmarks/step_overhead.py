"""Share of a training loop's time outside forward, backward and optimizer: data, exchange, metrics, the loop itself.

The loop of `penstock train` runs for 40 steps of the 11 M-parameter shape of `cpu_speed` with the metrics store and TensorBoard on.
`overhead` is one minus (forward, backward and optimizer seconds) / (seconds from row to row), after ten steps of warm-up;
the aim is below 0.02. `tiny_overhead` is the same for the `tiny` preset, where a step is only some 50 ms.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.cpu_speed import MID
from benchmarks.rigs import penstock_parts
from penstock.engine.trainer import train
from penstock.monitor import MetricStore

SETS = [
    "compile.enabled=off", "train.steps=40", "optim.warmup=5", "eval.every=0", "eval.sequences=8", "snapshot.every=0", "metrics.tensorboard=true",
    "metrics.dashboard=false",
]  # fmt: skip


def run() -> dict[str, float | str]:
    """Measure both shapes."""
    return {"overhead": overhead("small", [*MID, *SETS]), "tiny_overhead": overhead("tiny", SETS)}


def overhead(preset: str, sets: list[str]) -> float:
    """Share of the loop's time outside forward, backward and optimizer."""
    with tempfile.TemporaryDirectory() as folder:
        parts = penstock_parts(preset, sets, Path(folder))
        train(parts)
        parts.journal.close()
        rows = MetricStore(parts.run.path / "metrics").read("train")[10:]
    useful = sum(float(row["forward_backward_s"]) + float(row["optimizer_s"]) for row in rows[1:])
    return 1.0 - useful / (float(rows[-1]["time"]) - float(rows[0]["time"]))
