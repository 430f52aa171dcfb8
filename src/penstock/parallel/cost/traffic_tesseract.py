"""Traffic of 2.5-D tensor parallelism, from shapes: the layers of `tensor/tesseract.py` and their products of `tensor/summa.py`, line by line.

For one micro-batch, forward and backward, q rows and q columns. A product of n rows with a block (o, i) of this rank broadcasts the panels
(n, i) along the columns three times in q steps (twice backward, there and onto their owner), the blocks down the rows twice, and
sums a block's gradient once, each step's call counted by itself. The transposed product of the head sends (n, v/q) twice instead of three times.
The depth of the grid sends nothing here: its ranks hold the same blocks, whose gradients are summed with the data ranks' (`estimate.py`).
"""

from __future__ import annotations

from penstock.models.decoder import has_experts
from penstock.parallel.cost.traffic import TOKEN_BYTES, Collective, Workload, both_ways
from penstock.parallel.cost.traffic_grid import expected_rows


def tesseract_layer(work: Workload, layer: int) -> list[Collective]:
    """What block `layer` sends over the rows and columns."""
    model, k = work.model, work.model.head_dim
    width, heads, kv = (work.part(size, "column", unit) for size, unit in ((model.dim, 1), (model.heads * k, k), (model.kv_heads * k, k)))
    attention = [*_product(work, work.tokens, width, heads + 2 * kv), *_product(work, work.tokens, heads, width)]
    feed_forward = _experts(work) if has_experts(model, layer) else _feed_forward(work, model.ffn_dim)
    return [*attention, *feed_forward, *_norm(work, 2)]


def tesseract_embedding(work: Workload) -> list[Collective]:
    """What the embedding sends over the rows."""
    q, width = work.layout.row, work.part(work.model.dim, "column")
    tokens = Collective(("row",), "tokens", "all_gather", q * work.tokens * TOKEN_BYTES)
    return [tokens, *both_ways("row", "embedding", "reduce_scatter", q * work.tokens * width * work.master)]


def tesseract_head(work: Workload) -> list[Collective]:
    """What final norm, head and loss send over the rows and columns."""
    return [*_norm(work, 1), *_loss(work)]


def _product(work: Workload, rows: int, inputs: int, outputs: int, stack: int = 1) -> list[Collective]:
    """`multiply` of (rows, inputs) with a stack of blocks (outputs, inputs)."""
    q, panel, block = work.layout.row, rows * inputs * work.compute, stack * inputs * outputs * work.compute
    return [
        Collective(("column",), "activations", "broadcast", panel, 2 * q),
        Collective(("column",), "activations", "reduce", panel, q),
        Collective(("row",), "weights", "broadcast", block, 2 * q),
        Collective(("row",), "weight_gradients", "reduce", block, q),
    ]


def _norm(work: Workload, times: int) -> list[Collective]:
    return both_ways("column", "norm", "all_reduce", work.tokens * work.wide, times)


def _feed_forward(work: Workload, hidden: int) -> list[Collective]:
    width, part = work.part(work.model.dim, "column"), work.part(hidden, "column")
    return [*_product(work, work.tokens, width, 2 * part), *_product(work, work.tokens, part, width)]


def _experts(work: Workload) -> list[Collective]:
    moe = work.model.moe
    rows, stack = expected_rows(work), work.part(moe.experts, "expert")
    width, part = work.part(work.model.dim, "column"), work.part(moe.dim, "column")
    router = both_ways("column", "router", "all_reduce", work.tokens * moe.experts * work.master)
    routed = [*_product(work, rows, width, 2 * part, stack), *_product(work, rows, part, width, stack)]
    return [*router, *routed, *(_feed_forward(work, moe.shared * moe.dim) if moe.shared else [])]


def _loss(work: Workload) -> list[Collective]:
    q, vocab = work.layout.row, work.part(work.model.vocab, "column")
    block, lines = vocab * work.part(work.model.dim, "column") * work.compute, []
    for tokens, times in work.chunks(work.chunk_tokens * q):
        logits = tokens * vocab * work.compute
        lines += [
            Collective(("column",), "activations", "reduce", logits, q * times),
            Collective(("column",), "activations", "broadcast", logits, q * times),
            Collective(("row",), "weights", "broadcast", block, 2 * q * times),
            Collective(("row",), "weight_gradients", "reduce", block, q * times),
            Collective(("column",), "loss", "all_reduce", tokens * work.wide, times),
            Collective(("column",), "loss", "all_reduce", 2 * tokens * work.wide, times),
        ]
    return lines
