"""Tokens needed to learn: `configs/shakespeare-char.toml` on tinyshakespeare, three seeds.

At most 0.81 M parameters, characters, context 64, the last 10 % of the characters held out. `tokens_to_1_88` is the median number
of training tokens at the first evaluation with a validation loss of at most 1.88 (what nanoGPT's published CPU recipe reaches after
1.54 M tokens; the aim is 0.25 M); `final_loss` the median validation loss at the end (aim 1.62 after at most 1.54 M tokens);
`_low` and `_high` the extremes of the three seeds. Set PENSTOCK_SHARED_DATA to the folder that holds tinyshakespeare.txt.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from penstock.config import load_config
from penstock.engine import start_run

TARGET = 1.88
SEEDS = (1, 2, 3)


def run() -> dict[str, float | str]:
    """Train once for each seed."""
    folder = Path(os.environ.get("PENSTOCK_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    file = folder / "tinyshakespeare.txt"
    if not file.is_file():
        return {"skipped": f"no {file}; set PENSTOCK_SHARED_DATA to its folder"}
    with tempfile.TemporaryDirectory() as runs:
        results = [_train(file, seed, Path(runs)) for seed in SEEDS]
    reached = [min((e["tokens"] for e in r["evals"] if e["val_loss"] <= TARGET), default=float("inf")) for r in results]
    final = [r["val_loss"] for r in results]
    return {
        "tokens_to_1_88": statistics.median(reached),
        "tokens_to_1_88_low": min(reached),
        "tokens_to_1_88_high": max(reached),
        "final_loss": statistics.median(final),
        "final_loss_low": min(final),
        "final_loss_high": max(final),
        "tokens": results[0]["tokens"],
        "parameters": results[0]["parameters"],
        "seconds_a_run": statistics.median(r["wall_s"] for r in results),
    }


def _train(file: Path, seed: int, runs: Path) -> dict:
    config = load_config("shakespeare-char", [f"data.path={file}", f"run.seed={seed}", f"data.cache_dir={runs / 'cache'}"])
    return start_run(config, "shakespeare-char", "benchmark", 1, runs / f"seed-{seed}", None)
