"""Bytes of activations that autograd keeps from forward to backward, from shapes.

Per layer, for n tokens in the tensor group of which n/y lie on this rank between sub-layers, widths as cut on this rank (d' = d/x, h' query and g'
key-value heads, f' of the feed-forward), c bytes an activation and w bytes where float32 at least:

    two norms            2 (2 w (n/y) d' + w n/y)           input and normalised input, wide; the scale
    attention            n d' c + n k (2 h' + 2 g') c + 4 n h'   input; queries, result, keys, values; log-sum-exp
                         + n k h' x c                       the columns' results, gathered for wo       (x > 1)
    SwiGLU               n d' c + 3 n f' c + n f' x c       input; gate, up, silu(gate); their product, gathered
    experts              the same for the rows that come here, and each row's result; the router's scores and choices

x and y are columns and rows; in 2.5-D n are the rank's own tokens and nothing is gathered, so y = 1 and x = 1 in these terms. Under context
parallelism keys and values are those of the whole sequence; in 2.5-D the values, a view of the product that made queries and keys
too, keep all of it. `casts` are copies of weights in the activations' format (where that is not the weights'
own), or laid on top of each other (2.5-D), which matrix products keep too. Checked against autograd's own saved tensors to a few per cent; the dense
masks of the CPU's attention path under windows, documents or context are left out, and so is what a compiler recomputes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from penstock.models.decoder import has_experts
from penstock.parallel.cost.estimate import grid_shape, placements
from penstock.parallel.cost.traffic import Workload
from penstock.parallel.cost.traffic_grid import expected_rows, local_heads


def layer_activations(work: Workload, layer: int) -> int:
    """Bytes that block `layer` keeps of one micro-batch, copies of weights left out."""
    feed_forward = _experts(work) if has_experts(work.model, layer) else _feed_forward(work, work.tokens, work.model.ffn_dim)
    return 2 * _norm(work) + _attention(work) + feed_forward


def ends_activations(work: Workload) -> int:
    """Bytes kept by the final norm and the loss: the norm's, and the gradients of hidden states that the loss has ready."""
    return _norm(work) + work.tokens * _width(work) * work.compute


def kept_activations(work: Workload) -> int:
    """Bytes of activations that the rank keeps when it keeps most: those of one micro-batch, or of all that its schedule has under way.

    A stage that sends its result on keeps that too.
    """

    def of_stage(layers: tuple[int, ...], ends: bool) -> int:
        rest = ends_activations(work) if ends else work.stream_bytes
        return sum(layer_activations(work, layer) for layer in layers) + rest

    return _at_most(work, of_stage)


def kept_casts(work: Workload) -> int:
    """Bytes of copies of weights that the rank keeps when it keeps most: every micro-batch under way has its own."""
    return _at_most(work, lambda layers, ends: sum(layer_casts(work, layer) for layer in layers))


def _at_most(work: Workload, of_stage: Callable[[tuple[int, ...], bool], int]) -> int:
    """The most that the rank's stages keep together, of which each keeps `of_stage` from its F to its W or B."""
    own, last = work.own_stages, 0 if work.stages is None else len(work.stages.parts) - 1
    kept = {stage: of_stage(layers, stage == last) for stage, layers in own.items()}
    if work.schedule is None:
        return sum(kept.values())
    now = most = 0
    for action in work.schedule.actions[work.place]:
        if action.work == "F":
            now += kept[action.stage]
            most = max(most, now)
        elif action.work in ("W", "B"):
            now -= kept[action.stage]
    return most


def loss_chunk(work: Workload) -> int:
    """Bytes of one chunk's logits and gradients while the loss computes them: two in the compute format, two wide for this rank's piece."""
    layout, vocab = work.layout, work.model.vocab
    if layout.topology == "2.5d":
        tokens, row = min(work.chunk_tokens * layout.row, work.tokens), work.part(vocab, "column")
        piece = row
    else:
        tokens, row = min(work.chunk_tokens * layout.row * layout.column, work.tokens), work.part(vocab, "row")
        piece = -(-row // layout.column)
    return tokens * (2 * row * work.compute + 2 * piece * work.wide)


def layer_casts(work: Workload, layer: int) -> int:
    """Bytes of block `layer`'s copies of weights that its products keep for the backward pass; in a pipeline only 2.5-D keeps any."""
    square = _square(work) and work.layout.tensor > 1
    stacked = ("wq", "wk", "wv", "gate", "up", "gate_efd", "up_efd") if square else ()
    narrower = work.compute != work.master and (square or work.layout.pipeline == 1)
    total = 0
    for name, placement in placements(work).items():
        matrix = len(placement.shape) > 1 and ".router." not in name
        if name.startswith(f"blocks.{layer}.") and matrix and (narrower or set(stacked) & set(name.split("."))):
            total += math.prod(grid_shape(placement, work)) * work.compute
    return total


def _square(work: Workload) -> bool:
    return work.layout.topology == "2.5d"


def _width(work: Workload) -> int:
    return work.part(work.model.dim, "column")


def _norm(work: Workload) -> int:
    tokens = work.tokens if _square(work) else work.tokens // work.layout.row
    return work.wide * tokens * (2 * _width(work) + 1)


def _attention(work: Workload) -> int:
    model, n, k = work.model, work.tokens, work.model.head_dim
    if _square(work):
        heads, kv, columns = work.part(model.heads, "column"), work.part(model.kv_heads, "column"), 1
    else:
        (heads, kv), columns = local_heads(work), work.layout.column
    gathered = n * k * heads * columns * work.compute if columns > 1 else 0
    together = n * k * (heads + kv) * work.compute if _square(work) and not (model.qk_norm and work.compute >= 4) else 0
    normed = work.wide * n * (heads + kv) * (2 * k + 1) if model.qk_norm else 0
    seen = n * work.layout.context  # tokens whose keys and values are here
    return n * (_width(work) + 2 * heads * k) * work.compute + 2 * seen * kv * k * work.compute + 4 * n * heads + gathered + together + normed


def _feed_forward(work: Workload, rows: int, hidden: int) -> int:
    columns = 1 if _square(work) else work.layout.column
    part = work.part(hidden, "column") if _square(work) else work.part(hidden, "row", columns) // columns
    return rows * (_width(work) + (3 + columns) * part) * work.compute


def _experts(work: Workload) -> int:
    moe, n = work.model.moe, work.tokens
    rows = expected_rows(work)
    choices = n * moe.experts * work.master + n * moe.active * (2 * 8 + 2 * work.master)
    router = n * _width(work) * work.master if work.master != work.compute else 0
    routed = _feed_forward(work, rows, moe.dim) + work.routed_rows * _width(work) * work.compute
    shared = _feed_forward(work, n, moe.shared * moe.dim) if moe.shared else 0 if router else n * _width(work) * work.compute
    return choices + router + routed + shared
