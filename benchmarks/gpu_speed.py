"""Training speed of the 1.3 B preset (`llama-1b`) at sequence 2048 in bfloat16 on one GPU, beside transformers in the same run.

`tokens_per_s` is Penstock's whole optimizer step (the best public per-size table, llm-foundry's, gives 45,455 tokens/s at 41.8 % of
989 TFLOP/s for 1.3 B at 2048 on an H100), `ratio` the plain loop's seconds over Penstock's. FLOPs a token are
6 × matmul parameters + 12 × layers × heads × head_dim × context (PaLM, appendix B); `of_datasheet` divides by 989 TFLOP/s,
`of_measured` by `ceiling_tflops`, this GPU's own measured matrix-product speed. `peak_gib` is the allocator's peak.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.rigs import penstock_parts, penstock_step, plain_step
from benchmarks.timing import ratio, take_turns
from penstock.models import flops_per_token
from penstock.plan import measure_peak

H100_DENSE_BF16 = 989e12


def run(turns: int = 8, micro: int = 8, plain_micro: int = 4) -> dict[str, float | str]:
    """Time both in turns; the plain loop gets a smaller micro-batch, since it holds all logits."""
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device"}
    sets = ["data.vocab=50304", "data.max_bytes=20000000", "model.vocab=50304", "batch.global=32", "run.device=cuda", "compile.enabled=on"]
    with tempfile.TemporaryDirectory() as folder:
        ours = penstock_parts("llama-1b", [*sets, f"batch.micro={micro}"], Path(folder))
        torch.cuda.reset_peak_memory_stats()
        step = penstock_step(ours)
        alone = take_turns({"penstock": step}, turns)["penstock"]
        peak = torch.cuda.max_memory_allocated()
        seconds = take_turns({"plain": plain_step(ours, plain_micro), "penstock": step}, max(2, turns // 2), warm_up=1)
    tokens = ours.config.batch.global_ * ours.config.model.context
    speed = tokens / statistics.median(alone)
    flops, ceiling = speed * flops_per_token(ours.config.model), measure_peak(ours.world.device, torch.bfloat16).tflops * 1e12
    return {
        "tokens_per_s": speed,
        **ratio(seconds["plain"], seconds["penstock"]),
        "plain_tokens_per_s": tokens / statistics.median(seconds["plain"]),
        "of_datasheet": flops / H100_DENSE_BF16,
        "of_measured": flops / ceiling,
        "ceiling_tflops": ceiling / 1e12,
        "parameters": float(ours.weights.n_total),
        "peak_gib": peak / 2**30,
        "device": torch.cuda.get_device_name(),
    }
