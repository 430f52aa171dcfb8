"""Training tokens/s of Penstock against a plain PyTorch loop around transformers' Llama, on this machine's CPU.

Same shape, batch, float32, AdamW and clipping on both sides; the whole optimizer step is timed, in turns. Three shapes, because the share
of the time that is matrix products, which both sides have alike, grows with the size: `char` (0.8 M parameters, 4 × 64 tokens: the
learning target's), `tiny` (1.1 M, 16 × 128: the preset's) and `mid` (11 M, 8 × 256). For each, `ratio` is the plain loop's seconds over
Penstock's (compiled, as `compile.enabled = "on"`), with quartiles, `eager_ratio` the same without compilation, `tokens_per_s`
Penstock's speed, metrics included, and `products` the share of Penstock's step that its matrix products would take at this machine's measured peak.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.rigs import penstock_parts, penstock_step, plain_step
from benchmarks.timing import ratio, take_turns
from penstock.models import flops_per_token
from penstock.plan import measure_peak

COMMON = [
    "run.device=cpu", "precision.compute=float32", "data.max_bytes=8000000", "model.qk_norm=false", "model.tie_embeddings=false",
    "optim.kind=adamw",
]  # fmt: skip
MID = [
    *COMMON, "data.vocab=8192", "model.layers=6", "model.dim=256", "model.heads=4", "model.ffn_dim=704", "model.context=256",
    "batch.global=8", "batch.micro=8",
]  # fmt: skip
SHAPES = {
    "char": [*COMMON, "data.tokenizer=bytes", "model.layers=4", "model.dim=128", "model.heads=4", "model.ffn_dim=344", "model.context=64",
             "batch.global=4", "batch.micro=4", "metrics.probe_every=32"],
    "tiny": [*COMMON, "data.vocab=2048", "model.layers=4", "model.dim=128", "model.heads=4", "model.ffn_dim=352", "model.context=128",
             "batch.global=16", "batch.micro=16"],
    "mid": MID,
}  # fmt: skip
TURNS = {"char": 60, "tiny": 30, "mid": 8}


def run() -> dict[str, float | str]:
    """Time the three contestants of each shape in turns."""
    figures: dict[str, float | str] = {}
    for name, sets in SHAPES.items():
        figures |= {f"{name}_{figure}": value for figure, value in compare(sets, TURNS[name]).items()}
    return figures


def compare(sets: list[str], turns: int) -> dict[str, float]:
    """The figures of one shape."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = penstock_parts("small", [*sets, "compile.enabled=on"], Path(folder))
        eager = penstock_parts("small", [*sets, "compile.enabled=off"], Path(folder))
        plain = plain_step(eager, eager.micro)
        seconds = take_turns({"plain": plain, "compiled": penstock_step(compiled), "eager": penstock_step(eager)}, turns)
    tokens = compiled.config.batch.global_ * compiled.config.model.context
    step_s = statistics.median(seconds["compiled"])
    peak = measure_peak(compiled.world.device, compiled.dtype).tflops * 1e12
    return {
        **ratio(seconds["plain"], seconds["compiled"]),
        "eager_ratio": ratio(seconds["plain"], seconds["eager"])["ratio"],
        "tokens_per_s": tokens / step_s,
        "products": tokens * flops_per_token(compiled.config.model) / peak / step_s,
    }
