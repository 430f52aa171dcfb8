"""Changes of a model's structure while it is trained: what becomes of every parameter when one `ModelSection` follows another.

The plan is a pure function of the two sections and speaks of whole (logical) tensors, whatever layout holds them; `grow_values.py` makes the values,
one parameter at a time. Growing preserves the function, so that the loss before and after is the same up to rounding:

- More layers: a new block follows an old one and is a copy of it, but its matrices that write into the residual stream are zero, so it is the
  identity at first (block expansion, Wu et al. 2024, arXiv 2401.02415). New blocks are spread evenly, among the dense ones and among those with
  experts. Plain stacking (Du et al. 2024, arXiv 2405.15319) learns as fast, but is not the same function at first.
- Wider feed-forward, more shared experts: new units read as a new model's would and write with zeros. Net2Net (Chen et al. 2016, arXiv 1511.05641)
  doubles units instead; copies get the same gradients, and need noise or uneven shares to part (bert2BERT, arXiv 2110.07143; LEMON, arXiv
  2310.07999). Zeros are exact in every number format and nothing has to part. LiGO (arXiv 2303.00980) learns the map, which takes training steps.
- More heads: as wide ones; new query heads join every group of a key-value head, and new groups come after the old ones.
- More experts: after the old ones of each group, with a routing bias so low that no token chooses them at first. Balancing raises it by
  `moe.bias_rate` a step, against a gap of a little over 1, until they are chosen; the function is preserved until then.
- Longer context, rotary positions: no parameter changes. An output head of its own: a copy of the embedding.

Fewer layers and a head that becomes the embedding lose something, which the plan says in `loses`. All else is refused by name. What is kept keeps
its scale: new values are drawn with the deviations that `init.py` gives a new model of the new depth.

When not to use it: to change the width of the residual stream; RMSNorm divides by the mean over it, so no padding leaves the function alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch

from penstock.config import ModelSection, UserError
from penstock.models.decoder import Decoder, has_experts

#: Settings of the shape that must stay, as no padding leaves the function alone.
FIXED = ("dim", "head_dim", "vocab", "qk_norm")
FIXED_MOE = ("active", "groups", "active_groups", "scoring", "normalise")
#: Matrices that write into the residual stream, by the last parts of their names.
WRITERS = ("wo.weight", "down.weight", "down_edf")

Fate = Literal["kept", "wider", "copied", "silent", "drawn"]


class Runs(NamedTuple):
    """How the entries of one dimension lie in a longer one: `before` runs of `width` lead the first of `after` runs of `new_width`."""

    before: int
    width: int
    after: int
    new_width: int

    @property
    def same(self) -> bool:
        """Whether nothing is added."""
        return (self.before, self.width) == (self.after, self.new_width)


@dataclass(frozen=True)
class Change:
    """What becomes of one parameter or buffer of the new model.

    kept: as `source` was; wider: `source` with new entries; copied: as `source`'s, in a block that is new; silent: zero, in a block that is new;
    drawn: as in a new model. `runs` has one entry for each dimension of `source`, none where there is no source.
    """

    name: str
    fate: Fate
    shape: tuple[int, ...]
    source: str | None = None
    runs: tuple[Runs, ...] = ()


@dataclass(frozen=True)
class Growth:
    """A change of structure: what becomes of every tensor of the model, by its new name; which old ones go; and what that means, in words."""

    changes: dict[str, Change]
    dropped: tuple[str, ...]
    preserves: tuple[str, ...]
    loses: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        """Whether every tensor stays as and where it is."""
        return not self.dropped and all(change.fate == "kept" and change.source == name for name, change in self.changes.items())

    def as_dict(self) -> dict[str, Any]:
        """For printing as JSON."""
        return asdict(self)


def plan_growth(before: ModelSection, after: ModelSection) -> Growth:
    """What becomes of a model of the resolved section `before` when it becomes one of `after`; raises `UserError` for what is not supported."""
    _check(before, after)
    old, new = _shapes(before), _shapes(after)
    sources = _sources(before, after)
    changes = {name: _change(before, after, name, shape, old, sources) for name, shape in new.items()}
    used = {change.source for change in changes.values() if change.fate in ("kept", "wider")}
    return Growth(changes, tuple(sorted(old.keys() - used)), tuple(_preserves(before, after)), tuple(_loses(before, after, sources)))


def place_of_kept(index: int, fewer: int, more: int) -> int:
    """Where block `index` of `fewer` lies among `more`, spread evenly with the first in front: what growing gives, shrinking finds again."""
    return -(-index * more // fewer)


def _shapes(model: ModelSection) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Decoder(model).state_dict().items()}


def _sources(before: ModelSection, after: ModelSection) -> dict[int, tuple[int | None, bool]]:
    """For each new block the old one it comes from (None: drawn), and whether it is that one still; dense ones and those with experts apart."""
    found: dict[int, tuple[int | None, bool]] = {}
    for experts in (False, True):
        old = [layer for layer in range(before.layers) if has_experts(before, layer) is experts]
        new = [layer for layer in range(after.layers) if has_experts(after, layer) is experts]
        if len(new) < len(old):
            found |= {layer: (old[place_of_kept(i, len(new), len(old))], True) for i, layer in enumerate(new)}
            continue
        kept = {place_of_kept(i, len(old), len(new)): source for i, source in enumerate(old)}
        last: int | None = None
        for i, layer in enumerate(new):
            last = kept.get(i, last)
            found[layer] = (last, i in kept)
    return found


def _change(
    before: ModelSection,
    after: ModelSection,
    name: str,
    shape: tuple[int, ...],
    old: dict[str, tuple[int, ...]],
    sources: dict[int, tuple[int | None, bool]],
) -> Change:
    if name == "head.weight" and name not in old:
        return Change(name, "copied", shape, "embedding.weight", tuple(Runs(1, size, 1, size) for size in shape))
    source, stays = name, True
    if name.startswith("blocks."):
        _, layer, rest = name.split(".", 2)
        origin, stays = sources[int(layer)]
        if not stays and name.endswith(WRITERS):
            return Change(name, "silent", shape)
        source = f"blocks.{origin}.{rest}"
    if source not in old:  # shared experts where there were none: they must not write either
        return Change(name, "silent" if name.endswith(WRITERS) else "drawn", shape)
    runs = _runs(before, after, name, old[source], shape)
    wider = not all(run.same for run in runs)
    return Change(name, "copied" if not stays else "wider" if wider else "kept", shape, source, runs)


def _runs(before: ModelSection, after: ModelSection, name: str, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Runs, ...]:
    """How the old entries lie in each dimension: heads by groups of their key-value head, experts by their group, others in front."""
    runs = [Runs(1, size, 1, larger) for size, larger in zip(old, new)]
    part = name.removesuffix(".weight").rpartition(".")[2]
    groups, new_groups = before.kv_heads, after.kv_heads
    if part in ("wq", "wo"):
        dim = 0 if part == "wq" else 1
        runs[dim] = Runs(groups, old[dim] // groups, new_groups, new[dim] // new_groups)
    elif part in ("router", "bias_e", "gate_efd", "up_efd", "down_edf"):
        count = before.moe.groups
        runs[0] = Runs(count, old[0] // count, count, new[0] // count)
    return tuple(runs)


def _check(before: ModelSection, after: ModelSection) -> None:
    """Refuse what is not supported, naming the key."""
    fixed = [(key, getattr(before, key), getattr(after, key)) for key in FIXED]
    if before.moe.experts and after.moe.experts:
        fixed += [(f"moe.{key}", getattr(before.moe, key), getattr(after.moe, key)) for key in FIXED_MOE]
    for key, was, becomes in fixed:
        if was != becomes:
            raise UserError(f"model.{key} cannot change from {was!r} to {becomes!r} with the function preserved; leave it as it was")
    if bool(before.moe.experts) != bool(after.moe.experts):
        raise UserError(
            f"model.moe.experts cannot change from {before.moe.experts} to {after.moe.experts}: dense layers and mixtures of experts do not become "
            "each other; start a new run"
        )
    for key, less, more in _sizes(before, after):
        if more < less:
            raise UserError(f"model.{key} can only grow, and {more} is less than {less}; leave it, or choose at least {less}")
    if after.heads // after.kv_heads < before.heads // before.kv_heads:
        raise UserError(
            f"model.kv_heads = {after.kv_heads} leaves fewer of model.heads = {after.heads} to a key-value head than the "
            f"{before.heads // before.kv_heads} there are; add heads with them"
        )
    _check_experts(before, after)


def _sizes(before: ModelSection, after: ModelSection) -> list[tuple[str, int, int]]:
    """Numbers that may grow but not shrink, by key."""
    sizes = [(key, getattr(before, key), getattr(after, key)) for key in ("heads", "kv_heads")]
    dense = [any(not has_experts(model, layer) for layer in range(model.layers)) for model in (before, after)]
    if all(dense):
        sizes.append(("ffn_dim", before.ffn_dim, after.ffn_dim))
    if before.moe.experts and after.moe.experts:
        sizes += [(f"moe.{key}", getattr(before.moe, key), getattr(after.moe, key)) for key in ("experts", "dim", "shared")]
    return sizes


def _check_experts(before: ModelSection, after: ModelSection) -> None:
    if after.moe.experts <= before.moe.experts:
        return
    if after.moe.scoring != "sigmoid":
        raise UserError(
            f"model.moe.experts cannot grow with model.moe.scoring = {after.moe.scoring!r}, in which every expert has a part in all scores; "
            "leave the number as it was"
        )
    if not after.moe.bias_rate:
        raise UserError("model.moe.experts cannot grow with model.moe.bias_rate = 0: nothing would bring the new ones in; set a rate above 0")


def _preserves(before: ModelSection, after: ModelSection) -> list[str]:
    said = []
    if after.layers > before.layers:
        said.append(f"{after.layers - before.layers} new layers copy the one before them and are the identity at first")
    if after.ffn_dim > before.ffn_dim or after.moe.dim > before.moe.dim or after.moe.shared > before.moe.shared:
        said.append("new feed-forward units write zeros at first")
    if after.heads > before.heads:
        said.append(f"{after.heads - before.heads} new heads write zeros at first")
    if after.moe.experts > before.moe.experts:
        gap = f"in the order of {1 / after.moe.bias_rate:.0f} steps" if after.moe.bias_rate else ""
        said.append(f"{after.moe.experts - before.moe.experts} new experts are not chosen until balancing has raised their bias ({gap})")
    if after.context > before.context:
        said.append("a longer context has no parameters; positions beyond the old one are untrained")
    if before.tie_embeddings and not after.tie_embeddings:
        said.append("the head begins as a copy of the embedding")
    return said


def _loses(before: ModelSection, after: ModelSection, sources: dict[int, tuple[int | None, bool]]) -> list[str]:
    said = []
    gone = sorted(set(range(before.layers)) - {source for source, stays in sources.values() if stays})
    if gone:
        said.append(f"what layers {', '.join(map(str, gone))} computed is lost; the loss rises")
    if after.tie_embeddings and not before.tie_embeddings:
        said.append("the head's own matrix is lost, and the embedding takes its place; the loss rises")
    other = [key for key in ("norm_eps", "rope_theta", "rope_scaling", "sliding_window") if getattr(before, key) != getattr(after, key)]
    said += [f"another model.{key} is another function of the same weights" for key in other]
    if before.moe.experts and before.moe.scale != after.moe.scale:
        said.append("another model.moe.scale is another function of the same weights")
    return said
