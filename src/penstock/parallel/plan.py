"""The plan of a layout: for every parameter of a model its placement, as data, before any tensor exists.

Tensor grid (`layout.py`); `|` reads "cut over":

                      1-D and 2-D (rows y, columns x)         2.5-D (q rows, q columns, depth d)
    residual stream   tokens | row, features | column         sequences | depth, row; features | column
    embedding, head   (vocabulary | row, d | column)          the same
    wq wk wv gate up  (out | row, in | column)                (out | column, in | row)
    wo down           (out | column, in | row)                (out | column, in | row)
    norms, router     features | column                       the same

so that 1-D is Megatron's column and row split with sequence parallelism (Korthikanti et al., arXiv 2205.05198), 2-D is the weight-stationary
grid of AxoNN (Singh et al., arXiv 2305.13525) with its all-reduces taken apart into the two halves that need less memory, and 2.5-D is
Tesseract (Wang et al., arXiv 2105.14500). Heads, feed-forward widths and vocabularies that do not divide leave the last parts short; the
layers pad. Where grouped key-value heads do not divide over a 1-D or 2-D grid, every rank holds them all (`kv_everywhere`); a 2.5-D grid
refuses them.

Experts are cut over the expert axis, or placed by `slots`; each expert's matrices are cut like a dense layer's. FSDP then cuts what is
left along dim 0, or along dim 1 for stacks of experts where it divides; but not the blocks' norms and routers, which compute in the
weights' own format whatever the activations', and are small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from penstock.config import ConfigError, ModelSection
from penstock.parallel.experts.balance import Slots
from penstock.parallel.layout import Layout
from penstock.parallel.pipeline.stages import Stages
from penstock.parallel.placement import Placement, Split


def plan_weights(
    model: ModelSection,
    layout: Layout,
    shapes: dict[str, tuple[int, ...]],
    slots: Mapping[str, Slots] | None = None,
    stages: Stages | None = None,
) -> dict[str, Placement]:
    """Placement of every parameter by logical name, from its full shape; FSDP's cut included.

    `slots[block]` places the experts of a block by hand; those of the other blocks are cut evenly. `stages` says which layers are where.
    Raises `ConfigError` where FSDP would have to cut between the experts of hand-placed stacks.
    """
    plan = {}
    for name, shape in shapes.items():
        block = name.split(".")[1] if name.startswith("blocks.") else ""
        placement = place(name, shape, model, layout, (slots or {}).get(block, ()))
        expert = _is_expert(name)
        axes = layout.expert_shard_axes if expert else () if _is_small(name, shape) else layout.shard_axes
        dim = shard_dim(placement, layout, expert)
        if placement.slots and axes and dim == 0:
            raise ConfigError(
                f"{name}: places with different numbers of experts, or widths that the {layout.expert_shard} ranks which shard an expert "
                "do not divide, cannot be sharded where experts are placed by load; change layout.shard, layout.expert or model.moe.dim"
            )
        plan[name] = replace(placement.also(Split(dim, axes)), holders=stages.holders(name) if stages else ())
    return plan


def place(name: str, shape: tuple[int, ...], model: ModelSection, layout: Layout, slots: Slots = ()) -> Placement:
    """Placement of one parameter on the tensor grid and the expert axis."""
    if _is_expert(name):
        along_experts = () if slots else (Split(0, ("expert",)),)
        matrix = _matrix(name.rpartition(".")[2].partition("_")[0], model, layout)
        return Placement(shape, (*along_experts, *(Split(s.dim + 1, s.axes, s.unit) for s in matrix)), slots)
    parts = name.split(".")
    layer = parts[-2] if len(parts) > 1 else name
    if layer in ("embedding", "head"):
        return Placement(shape, (Split(0, ("row",)), Split(1, ("column",))))
    if layer in ("q_norm", "k_norm"):
        return Placement(shape)
    if len(shape) == 1 or layer == "router":
        return Placement(shape, (Split(len(shape) - 1, ("column",)),))
    if layer in ("wk", "wv") and kv_everywhere(model, layout):
        return Placement(shape, (Split(1, ("column",)),))
    return Placement(shape, _matrix(layer, model, layout))


def kv_everywhere(model: ModelSection, layout: Layout) -> bool:
    """Whether every rank of the grid holds all key-value heads, because grouped ones do not divide over a 1-D or 2-D grid."""
    return layout.topology != "2.5d" and model.kv_heads != model.heads and model.kv_heads % (layout.row * layout.column) != 0


def shard_dim(placement: Placement, layout: Layout, expert: bool) -> int:
    """The dim along which FSDP cuts a parameter: 0, or 1 of a stack of experts where that divides evenly, as FSDP2 demands of other dims."""
    if not expert:
        return 0
    return 1 if placement.local_shape(layout, 0)[1] % layout.size(*layout.expert_shard_axes) == 0 and _evenly(placement, layout) else 0


def _evenly(placement: Placement, layout: Layout) -> bool:
    return len({placement.local_shape(layout, rank) for rank in range(layout.ranks)}) == 1


def _matrix(layer: str, model: ModelSection, layout: Layout) -> tuple[Split, ...]:
    """Splits of a (out, in) matrix of a block."""
    outward = layer in ("wo", "down")  # writes into the residual stream
    heads = layer in ("wq", "wk", "wv", "wo")
    if layout.topology == "2.5d":
        unit = model.head_dim if heads else 1
        return (Split(0, ("column",), 1 if outward else unit), Split(1, ("row",), unit if outward else 1))
    unit = layout.column * (model.head_dim if heads else 1)
    return (Split(0, ("column",)), Split(1, ("row",), unit)) if outward else (Split(0, ("row",), unit), Split(1, ("column",)))


def _is_small(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a norm or a router of a block, which every data rank holds whole."""
    return name.startswith("blocks.") and (len(shape) == 1 or "router" in name.split("."))


def _is_expert(name: str) -> bool:
    return "experts" in name.split(".")
