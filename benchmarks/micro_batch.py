"""What `batch.micro = "auto"` chooses, against every power of two, on a small model on this machine's CPU.

Two shapes, eager: `narrow` (1.1 M parameters, 32 × 128 tokens a step) and `long` (the same, 8 × 512). Each first trains until the size is settled,
as a run does; then steps of the same model at the chosen size and at each power of two up to the whole batch take turns, in ascending order.
For each shape, `chosen` is the size and `settled_after` the steps that it took, `tokens_per_s` the speed at it, `times_<size>` the seconds of a step
at that size over those at the chosen one (median over turns; above 1: the choice is faster), and `of_best` the least of these: 1 means that nothing
was faster, 0.95 that a power of two was by 5 %. `noise` is the spread (middle half) of the chosen size's own seconds, as a share of their median.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rigs import penstock_parts
from benchmarks.timing import ratio, take_turns
from penstock.engine.build import Parts
from penstock.engine.step import take_step
from penstock.engine.tune.micro import tune_micro

COMMON = [
    "run.device=cpu", "precision.compute=float32", "compile.enabled=off", "batch.micro=auto", "data.max_bytes=4000000", "data.vocab=2048",
    "model.layers=4", "model.heads=4",
]  # fmt: skip
SHAPES = {
    "narrow": [*COMMON, "model.dim=128", "model.context=128", "batch.global=32"],
    "long": [*COMMON, "model.dim=128", "model.context=512", "batch.global=8"],
}
TURNS = 8


def run() -> dict[str, float | str]:
    """The figures of both shapes."""
    figures: dict[str, float | str] = {}
    for name, sets in SHAPES.items():
        figures |= {f"{name}_{figure}": value for figure, value in compare(sets).items()}
    return figures


def compare(sets: list[str]) -> dict[str, float]:
    """The figures of one shape."""
    with tempfile.TemporaryDirectory() as folder:
        parts = penstock_parts("small", sets, Path(folder))
        while not parts.tuner.settled:
            began = time.perf_counter()
            steps_of(parts, parts.micro)()
            tune_micro(parts, time.perf_counter() - began)
        chosen, settled_after, share = parts.micro, parts.progress.step, parts.config.batch.global_
        powers = [1 << power for power in range(share.bit_length()) if share % (1 << power) == 0]
        seconds = take_turns({str(size): steps_of(parts, size) for size in sorted({*powers, chosen})}, TURNS)
        parts.journal.close()
    own = seconds[str(chosen)]
    times = {size: ratio(took, own)["ratio"] for size, took in seconds.items()}
    low, middle, high = statistics.quantiles(own, n=4)
    return {
        "chosen": float(chosen),
        "settled_after": float(settled_after),
        "tokens_per_s": share * parts.config.model.context / middle,
        **{f"times_{size}": value for size, value in times.items()},
        "of_best": min(times.values()),
        "noise": (high - low) / middle,
    }


def steps_of(parts: Parts, size: int) -> Callable[[], None]:
    """A function that takes the next step of `parts` with micro-batches of `size`."""

    def step() -> None:
        parts.tuner.size = size
        take_step(parts, parts.progress.step)
        parts.progress.step += 1
        parts.timer.take()

    return step
