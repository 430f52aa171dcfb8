"""Training tokens/s of Penstock against a plain PyTorch loop around transformers' Llama, on this machine's CPU.

Same shape (6 layers of width 256, vocabulary 8192, context 256: 11 M parameters), same batch, float32, AdamW and clipping on both
sides; the whole optimizer step is timed, in turns. `ratio` is the plain loop's seconds over Penstock's (compiled, as
`compile.enabled = "on"`), `eager_ratio` without compilation, both medians with quartiles; `tokens_per_s` is Penstock's.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.rigs import penstock_parts, penstock_step, plain_step
from benchmarks.timing import ratio, take_turns

SHAPE = [
    "run.device=cpu", "precision.compute=float32", "data.vocab=8192", "data.max_bytes=8000000",
    "model.layers=6", "model.dim=256", "model.heads=4", "model.ffn_dim=704", "model.context=256", "model.qk_norm=false",
    "batch.global=8", "batch.micro=8", "optim.kind=adamw", "optim.lr=1e-3",
]  # fmt: skip


def run(turns: int = 12) -> dict[str, float | str]:
    """Time the three contestants in turns."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = penstock_parts("small", [*SHAPE, "compile.enabled=on"], Path(folder))
        eager = penstock_parts("small", [*SHAPE, "compile.enabled=off"], Path(folder))
        seconds = take_turns({"plain": plain_step(eager, 8), "compiled": penstock_step(compiled), "eager": penstock_step(eager)}, turns)
    best, plain = ratio(seconds["plain"], seconds["compiled"]), ratio(seconds["plain"], seconds["eager"])
    tokens = compiled.config.batch.global_ * compiled.config.model.context
    return {
        **best,
        "eager_ratio": plain["ratio"],
        "eager_low": plain["low"],
        "eager_high": plain["high"],
        "tokens_per_s": tokens / statistics.median(seconds["compiled"]),
        "plain_tokens_per_s": tokens / statistics.median(seconds["plain"]),
    }
