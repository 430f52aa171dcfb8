"""What the metrics cost a step: three ways of taking the next step of one run take turns in one process.

    off       nothing is recorded
    plain     a step between two that the costlier probes look at: losses, gradients, activations of every layer, time, traffic, memory, host, data
    probed    one that they look at: weights, updates, dead units, attention, logits too

Times are the process's own (its metrics thread among them), so that neighbours on the machine do not count; a ratio is taken within each turn, and
its median over the turns reported. `cost` is what a step costs more with the case's `metrics.probe_every`, as a share (aim: 0.01 or less),
`cost_probed` in a probed step, `cost_plain` in the others; `cost_low` and `cost_high` are quartiles. `metrics` counts those that a probed step
records (aim: 300 or more for four layers), `thread_us` what recording a probed step's row takes of the training thread beyond reading its values
(aim: 50 or less), `read_us` the reading. `same_bits` is 1 if the weights after some steps with metrics and without are the same bit for bit.

PENSTOCK_COST_CASE is the case: `small` (the default; batches of 8 sequences, a quarter of the preset's, for which everything but activations costs
four times as much by comparison), `tiny` (the preset), `char` or `char-compiled` (`cpu_speed`'s smallest shape, 256 tokens a step, without
compilation and with it).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_speed import SHAPES
from benchmarks.rigs import penstock_parts
from benchmarks.timing import ratio, take_turns
from penstock.config import Config, with_values
from penstock.engine.build import Parts
from penstock.engine.record.rows import Taken
from penstock.engine.state import weights_digest
from penstock.engine.step import take_step
from penstock.monitor.series.table import ABSENT_BITS
from penstock.monitor.series.tail import RowTail

CASES = {
    "small": ("small", ["batch.global=8", "batch.micro=8", "compile.enabled=off"]),
    "tiny": ("tiny", ["compile.enabled=off"]),
    "char": ("tiny", [*SHAPES["char"], "compile.enabled=off"]),
    "char-compiled": ("tiny", [*SHAPES["char"], "compile.enabled=on"]),
}
SETS = ["optim.warmup=5", "snapshot.every=0", "eval.every=0"]
TURNS = 30
#: Steps after which the weights are compared.
STEPS = 3


def run() -> dict[str, float | str]:
    """Measure the three in turns."""
    preset, sets = CASES[os.environ.get("PENSTOCK_COST_CASE", "small")]
    with tempfile.TemporaryDirectory() as name:
        parts = penstock_parts(preset, [*sets, *SETS], Path(name))
        every = parts.config.metrics.probe_every
        ways: dict[str, dict[str, Any]]
        ways = {"off": {"metrics.rows": False}, "plain": {"metrics.probe_every": 1 << 40}, "probed": {"metrics.probe_every": 1}}
        configs = {way: with_values(parts.config, values) for way, values in ways.items()}
        own: list[float] = []
        with parts.recording.of(parts):
            take_step(parts, 0)  # no multiple of 2⁴⁰ comes after it
            parts.progress.step = 1
            seconds = take_turns({way: _step(parts, config, own) for way, config in configs.items()}, TURNS, 1, time.process_time)
        read, metrics = _rows(parts)
        plain, probed = (ratio(seconds[way], seconds["off"]) for way in ("plain", "probed"))
        cost = {key: plain[key] + (probed[key] - plain[key]) / every - 1 for key in plain}
        return {
            "cost": cost["ratio"],
            "cost_low": cost["low"],
            "cost_high": cost["high"],
            "cost_plain": plain["ratio"] - 1,
            "cost_probed": probed["ratio"] - 1,
            "step_s": statistics.median(seconds["off"]),
            "metrics": metrics,
            "thread_us": 1e6 * statistics.median(own[1::2]),
            "read_us": 1e6 * read,
            "same_bits": float(len({_digest(name, way, values) for way, values in ways.items()}) == 1),
        }


def _step(parts: Parts, config: Config, own: list[float]) -> Callable[[], None]:
    """A function that takes the next step under `config`, and records it if that says so; it adds what that took to `own`."""

    def step() -> None:
        parts.config = config
        began = time.perf_counter()
        parts.world.meter.begin_step()
        result = take_step(parts, parts.progress.step)
        parts.progress.step += 1
        seconds, meter = time.perf_counter() - began, parts.world.meter
        taken = Taken(began, seconds, parts.timer.take(), meter.take(), meter.hidden, meter.outside, {})
        if config.metrics.rows:
            parts.recording.step(parts, result, taken)
            own.append(parts.recording.own_s)

    return step


def _rows(parts: Parts) -> tuple[float, float]:
    """Seconds that reading a probed step's values took, their median, and how many metrics its row has."""
    reads, counts = [], [0.0]
    tail = RowTail(parts.run.path / "metrics" / "rank-00000")
    for rows in (one for some in iter(tail.read, []) for one in some):
        measured = np.ascontiguousarray(rows.values_rn).view(np.uint64) != ABSENT_BITS
        if "weight_norm/total" in rows.about.names:
            probed = measured[:, rows.about.names.index("weight_norm/total")]
            counts.append(float(measured.sum(1).max()))
            reads += rows.values_rn[probed, rows.about.names.index("monitor/read_seconds")].tolist()
    return statistics.median(reads), max(counts)


def _digest(folder: str, way: str, values: dict[str, Any]) -> str:
    """The weights of a run of its own after some steps."""
    small = [*SETS, "model.layers=4", "batch.global=2", "batch.micro=1", "compile.enabled=off"]
    sets = [*small, *(f"{name}={str(value).lower()}" for name, value in values.items())]
    parts = penstock_parts("small", sets, Path(folder))
    for step in range(STEPS):
        take_step(parts, step)
    parts.journal.close()
    return weights_digest(parts.laid)
