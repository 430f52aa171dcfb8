"""What compressed exchange does to learning: final validation loss over bytes sent between nodes, for every kind, three seeds.

Two nodes of one rank each (gloo) train a decoder of 0.86 M parameters (4 layers × 128, context 128) on the bytes of Python's standard library, 2,048
tokens a step, AdamW at 3e-3, cosine; every kind with the same settings, none tuned. Tokens of each run: PENSTOCK_EXCHANGE_TOKENS, by default
1,500,000 (a quarter of an hour for all); the aims are for 10 M, which take two hours.

    NAME_loss, NAME_excess, NAME_saved      for every kind: median loss of the seeds; its excess over dense's of the same seed, the worst; share of
                                            dense float32's bytes saved. Aims: within 0.005 at 0.97 saved, within 0.02 at 0.995
    tokens, dense_loss                      of each run; the median
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from penstock.config import Config, with_values
from penstock.engine import start_run

SEEDS = (1, 2, 3)
TOKENS_A_STEP, CONTEXT = 2048, 128
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "topk_5pct": {"exchange.kind": "topk", "exchange.density": 0.05},
    "powersgd_r8": {"exchange.kind": "powersgd", "exchange.rank": 8},
    "periodic_10pct": {"exchange.kind": "periodic", "exchange.density": 0.1, "exchange.every": 1},
    "periodic_5pct_4": {"exchange.kind": "periodic", "exchange.density": 0.05, "exchange.every": 4},
}


def run() -> dict[str, float | str]:
    """Train every kind with every seed."""
    return learn(int(os.environ.get("PENSTOCK_EXCHANGE_TOKENS", "1500000")))


def learn(tokens: int, kinds: dict[str, dict[str, Any]] = KINDS, seeds: tuple[int, ...] = SEEDS) -> dict[str, float | str]:
    """The figures of runs of so many tokens."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(prefix="penstock-learning-") as folder:
        for seed in seeds:
            for name, settings in kinds.items():
                runs[name].append(_train(tokens, seed, name, settings, Path(folder)))
                done = runs[name][-1]
                print(f"seed {seed} {name}: {done['val_loss']:.4f} in {done['wall_s']:.0f} s, {done['exchange']}", file=sys.stderr, flush=True)
    found: dict[str, float | str] = {"tokens": runs["dense"][0]["tokens"], "seconds_a_run": statistics.median(r["wall_s"] for r in runs["dense"])}
    for name, results in runs.items():
        found[f"{name}_loss"] = statistics.median(result["val_loss"] for result in results)
        if name != "dense":
            found[f"{name}_excess"] = max(result["val_loss"] / plain["val_loss"] - 1 for result, plain in zip(results, runs["dense"]))
            found[f"{name}_saved"] = min(result["exchange"]["saved"] for result in results)
    return found


def _train(tokens: int, seed: int, name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    values = {
        "run.seed": seed, "data.path": "stdlib", "data.tokenizer": "bytes", "model.layers": 4, "model.dim": 128, "model.heads": 4,
        "model.ffn_dim": 344, "model.context": CONTEXT, "model.qk_norm": True, "batch.global": TOKENS_A_STEP // CONTEXT, "batch.micro": 8,
        "train.steps": tokens // TOKENS_A_STEP, "optim.kind": "adamw", "optim.lr": 3e-3, "optim.warmup": 100, "eval.every": 0,
        "eval.sequences": 1024, "eval.micro": 32, "eval.sample_tokens": 0, "snapshot.every": 0, "metrics.tensorboard": False,
        "metrics.dashboard": False,
        "exchange.topology": "2x1", "layout.replicate": 2, "compile.enabled": "off", "layout.bucket_mb": 1.0,
    }  # fmt: skip
    return start_run(with_values(Config(), values | settings), name, "benchmark", 2, folder / f"{name}-{seed}", None)
