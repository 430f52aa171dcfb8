"""Traffic of 1-D and 2-D tensor parallelism, from shapes: the layers of `tensor/grid.py`, line by line.

For one micro-batch, forward and backward. y rows, x columns; n tokens in the tensor group, c bytes an activation, w bytes where float32
at least, m bytes a weight. Where a width does not divide, the full part counts, because that is what is sent.

    row      embedding n d/x · m, attention and feed-forward 2 n d/x · c each, head n d/x · c                  (there and back)
    column   outputs of wq wk wv gate up, inputs of wo down: n (out/y) · c each; norms (n/y) · w; router n e · m  (there and back)
             head n (v/y) · c twice, with no backward pass of its own
    both     loss 3 n · w, all-reduced
"""

from __future__ import annotations

from penstock.models.decoder import has_experts
from penstock.parallel.cost.traffic import Collective, Workload, both_ways
from penstock.parallel.placement import padded_part, part
from penstock.parallel.plan import kv_everywhere


def grid_layer(work: Workload, layer: int) -> list[Collective]:
    """What block `layer` sends over the grid."""
    feed_forward = _experts(work) if has_experts(work.model, layer) else _feed_forward(work, work.model.ffn_dim)
    return [*_attention(work), *feed_forward, *_tokens(work, "attention", 2), *_tokens(work, "ffn", 2), *_norm(work, 2)]


def grid_embedding(work: Workload) -> list[Collective]:
    """What the embedding sends over the grid."""
    return both_ways("row", "embedding", "reduce_scatter", work.tokens * work.part(work.model.dim, "column") * work.master)


def grid_head(work: Workload) -> list[Collective]:
    """What final norm, head and loss send over the grid."""
    return [*_norm(work, 1), *_tokens(work, "head", 1), *_loss(work)]


def local_heads(work: Workload) -> tuple[int, int]:
    """Query heads, and key-value heads of each, that a rank of the grid computes with."""
    model, layout = work.model, work.layout
    heads = work.part(model.heads, "row", layout.column) // layout.column
    return heads, heads if kv_everywhere(model, layout) else work.part(model.kv_heads, "row", layout.column) // layout.column


def _tokens(work: Workload, purpose: str, times: int) -> list[Collective]:
    """Tokens gathered over the rows, or summed back to them."""
    return both_ways("row", purpose, "all_gather", work.tokens * work.part(work.model.dim, "column") * work.compute, times)


def _norm(work: Workload, times: int) -> list[Collective]:
    return both_ways("column", "norm", "all_reduce", work.tokens // work.layout.row * work.wide, times)


def _attention(work: Workload) -> list[Collective]:
    model, unit = work.model, work.layout.column * work.model.head_dim
    kv = model.kv_heads * model.head_dim
    lines = _outputs(work, "attention", model.heads * model.head_dim, unit, 2)  # wq, and wo's inputs
    if kv_everywhere(model, work.layout):
        return lines + both_ways("column", "attention", "all_reduce", work.tokens * kv * work.compute, 2)
    return lines + _outputs(work, "attention", kv, unit, 2)


def _feed_forward(work: Workload, hidden: int) -> list[Collective]:
    return _outputs(work, "ffn", hidden, work.layout.column, 3)


def _experts(work: Workload) -> list[Collective]:
    moe = work.model.moe
    router = both_ways("column", "router", "all_reduce", work.tokens * moe.experts * work.master)
    rows = expected_rows(work) * work.part(moe.dim, "row", work.layout.column)
    routed = both_ways("column", "experts", "reduce_scatter", rows * work.compute, 3)
    return [*router, *routed, *(_feed_forward(work, moe.shared * moe.dim) if moe.shared else [])]


def expected_rows(work: Workload) -> int:
    """Rows that this rank's experts multiply in a micro-batch; under even routing where experts live on several ranks."""
    places, experts = work.layout.expert, work.model.moe.experts
    _, held = part(experts, places, work.layout.index(work.rank, ("expert",)))
    return work.routed_rows * places * held // experts


def _outputs(work: Workload, purpose: str, width: int, unit: int, times: int) -> list[Collective]:
    """The sum over columns of a width cut over the rows, keeping a part; or the gather of such parts."""
    return both_ways("column", purpose, "reduce_scatter", work.tokens * work.part(width, "row", unit) * work.compute, times)


def _loss(work: Workload) -> list[Collective]:
    layout, column = work.layout, work.layout.column
    piece = padded_part(work.part(work.model.vocab, "row"), column)
    lines = []
    for tokens, times in work.chunks(work.chunk_tokens * layout.row * column):
        logits = tokens * piece * column * work.compute
        lines += [
            Collective(("column",), "head", "reduce_scatter", logits, times),
            Collective(("row", "column"), "loss", "all_reduce", tokens * work.wide, times),
            Collective(("row", "column"), "loss", "all_reduce", 2 * tokens * work.wide, times),
            Collective(("column",), "head", "all_gather", logits, times),
        ]
    return lines
