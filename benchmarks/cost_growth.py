"""Whether the cost grows with the work: tokens/s × parameters from 1 M to 30 M parameters.

Four shapes of the same family on this machine's CPU, compiled, AdamW; a step each in turns. `spread` is the largest over the
smallest of tokens/s × parameters (1 is perfectly flat, the aim is at most 2); `at_1M` … `at_30M` are those products in units of
10⁹ parameter-tokens a second.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.rigs import penstock_parts, penstock_step
from benchmarks.timing import take_turns

#: name → layers, width, heads
SHAPES = {"1M": (4, 128, 2), "3M": (5, 224, 4), "10M": (6, 352, 4), "30M": (8, 544, 8)}
COMMON = [
    "run.device=cpu", "precision.compute=float32", "data.vocab=2048", "data.max_bytes=4000000", "model.context=256", "model.ffn_dim=0",
    "batch.global=8", "batch.micro=8", "optim.kind=adamw", "compile.enabled=on",
]  # fmt: skip


def run(turns: int = 8) -> dict[str, float | str]:
    """Time a step of each shape in turns."""
    with tempfile.TemporaryDirectory() as folder:
        rigs = {
            name: penstock_parts("small", [*COMMON, f"model.layers={layers}", f"model.dim={dim}", f"model.heads={heads}"], Path(folder))
            for name, (layers, dim, heads) in SHAPES.items()
        }
        seconds = take_turns({name: penstock_step(parts) for name, parts in rigs.items()}, turns)
    products = {}
    for name, parts in rigs.items():
        tokens = parts.config.batch.global_ * parts.config.model.context
        products[f"at_{name}"] = parts.weights.n_total * tokens / statistics.median(seconds[name]) / 1e9
    return {"spread": max(products.values()) / min(products.values()), **products}
