"""Which grid tensor ranks should form: the rule that chooses the topology, from shapes alone.

What a rank sends for a layer grows differently with the tokens n of the group, the weights P of the layer and the ranks p. In elements, forward and
backward, for width d, h and g query and key-value heads times their width, feed-forward f:

    1-D                     8 n d (p - 1)/p: nearly the same whatever p is
    2-D, y rows, x columns  8 n (d/x)(y - 1)/y + 2 n (2 h + 2 g + 3 f)(x - 1)/(y x)
    2.5-D, q × q × depth    3 n/(q depth) (2 d + h + f)/q (q - 1) + 3 P (q - 1)/q², and 2 P/q² (depth - 1)/depth for the gradients
    a shard axis s          n/s tokens in each grid of p/s ranks, and 3 P s/p (s - 1)/s for the matrices

so few tokens favour 2-D, many 2.5-D, and very many an axis that moves weights instead of activations. No inequality decides: every grid's bytes are
computed exactly (`cost/estimate.py`), and the least wins. 1-D is among them and wins ties, so the choice never sends more than 1-D. The rule sees
bytes only; a grid with more, smaller exchanges needs ranks that are near each other (`parallel/layout.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.config import ModelSection
from penstock.parallel.cost.estimate import block_traffic
from penstock.parallel.cost.traffic import Workload
from penstock.parallel.layout import Layout
from penstock.parallel.plan import kv_everywhere


@dataclass(frozen=True)
class Choice:
    """A layout, and the bytes each rank sends with it."""

    layout: Layout
    n_bytes: int


def tensor_grids(layout: Layout) -> list[Layout]:
    """`layout` with its tensor ranks in every topology and shape, 1-D first."""
    ranks = layout.tensor
    grids = [("1d", 1, ranks, 1)]
    grids += [("2d", 1, ranks // x, x) for x in range(2, ranks + 1) if ranks % x == 0]
    grids += [("2.5d", ranks // (q * q), q, q) for q in range(2, ranks) if ranks % (q * q) == 0]
    return [replace(layout, topology=topology, depth=depth, row=row, column=column) for topology, depth, row, column in grids]


def layer_work(model: ModelSection, layout: Layout, tokens: int, compute: int = 4, master: int = 4) -> Workload | None:
    """A step on `tokens` tokens in the whole group of `layout`, a part of one sequence a rank; None where something does not divide."""
    parts = layout.size(*layout.sequence_axes)
    if tokens % parts or not _fits(model, layout, tokens // parts):
        return None
    return Workload(model.model_copy(update={"context": tokens // parts}), layout, 1, 1, compute, master)


def choose_topology(model: ModelSection, ranks: int, tokens: int, compute: int = 4, master: int = 4, shard: bool = False) -> Choice:
    """The layout of `ranks` ranks that sends least for the last layer of the resolved `model`, on `tokens` tokens in one micro-batch.

    With `shard`, part of the ranks may form a shard axis (ZeRO-3), on which tokens are spread and weights gathered; a sole shard axis is not
    among the choices, since it is no way to cut a layer. Raises `ValueError` where 1-D does not divide the tokens or the heads.
    """
    shards = [s for s in range(1, ranks) if ranks % s == 0] if shard else [1]
    layouts = [grid for s in shards for grid in tensor_grids(Layout(shard=s, row=ranks // s))]
    works = [work for layout in layouts if (work := layer_work(model, layout, tokens, compute, master))]
    if not works or works[0].layout != layouts[0]:
        raise ValueError(f"1-D over {ranks} ranks does not divide {tokens} tokens and {model.heads} heads")
    choices = [Choice(work.layout, layer_bytes(work)) for work in works]
    return min(choices, key=lambda choice: choice.n_bytes)


def layer_bytes(work: Workload) -> int:
    """Bytes a rank sends for the model's last layer in a step, weights and gradients included."""
    return sum(line.sent(work.layout) for line in block_traffic(work, work.model.layers - 1))


def _fits(model: ModelSection, layout: Layout, tokens: int) -> bool:
    """Whether the grid divides a sequence, the width and the heads (feed-forward and vocabulary are padded)."""
    square = layout.topology == "2.5d"
    sharing = layout.column if square else layout.row * layout.column
    return (
        (square or tokens % layout.row == 0)
        and model.dim % layout.column == 0
        and model.heads % sharing == 0
        and (model.kv_heads % sharing == 0 or (not square and kv_everywhere(model, layout)))
    )
