"""Tensors of a state that have a row for every node, taken up on other nodes: each gets its part of the rows' sum, their mean, or zeros.

What such a row is, the engine knows (`engine/state.py`); here is only the arithmetic, on the boxes that a rank holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from penstock.parallel import Box, Placement
from penstock.store.cells.reading import Local, read_boxes
from penstock.store.places.folder import Folder
from penstock.store.snapshots.manifest import Manifest


def has_other_rows(stored: tuple[int, ...] | None, wanted: tuple[int, ...], name: str, rule: str) -> bool:
    """Whether a tensor is there with other rows of nodes than are wanted, or with none, and there is a rule for that."""
    if not rule or stored == wanted:
        return False
    if stored is None or rule == "zero":
        return name.startswith("exchange.")
    return wanted == stored[1:] or stored == wanted[1:] or stored[1:] == wanted[1:]


def read_rows(folder: Folder, manifest: Manifest, wanted: Mapping[str, Local], when_nodes_change: Callable[[str], str]) -> None:
    """Fill tensors from others with different rows of nodes; raises `Damaged`."""
    sources: dict[str, Local] = {}
    for name, local in wanted.items():
        if name in manifest.tensors and when_nodes_change(name) != "zero":
            stored = manifest.tensors[name].shape
            boxes = [_all_rows(box, stored, len(stored) - len(local.shape)) for box in local.boxes]
            sources[name] = Local(stored, boxes, [view.new_empty(box.sizes) for view, box in zip(local.views, boxes)])
    read_boxes(folder, manifest, sources)
    for name, local in wanted.items():
        for index, view in enumerate(local.views):
            if name not in sources:
                view.zero_()
                continue
            fill_rows(view, sources[name].views[index], local.shape[0] if local.shape else 1, when_nodes_change(name))


def fill_rows(view: Tensor, rows: Tensor, nodes: int, rule: str) -> None:
    """Fill a wanted box from the stored box that it is made of: each of `nodes` gets its part of the rows' "sum", or their "mean"."""
    lead = rows.dim() - view.dim()
    one = rows if lead < 0 else rows.sum(0, keepdim=lead == 0)
    parts = nodes if rule == "sum" else rows.shape[0] if lead >= 0 else 1
    view.copy_((one / parts).expand_as(view))


def rows_placement(stored: tuple[int, ...], wanted: Placement) -> Placement:
    """Where a stored tensor with other rows of nodes is to lie, so that each rank can make from it what it is wanted to hold."""
    lead = len(stored) - len(wanted.shape)
    assert not wanted.slots, "experts placed by hand have no rows of nodes"
    inner = [split for split in wanted.splits if lead > 0 or split.dim > 0]
    return replace(wanted, shape=stored, splits=tuple(replace(split, dim=split.dim + lead) for split in inner))


def _all_rows(box: Box, stored: tuple[int, ...], lead: int) -> Box:
    """The part of a stored tensor from which a wanted box is made; it has `lead` dims more."""
    if lead < 0:
        return Box(box.offsets[1:], box.sizes[1:])
    same = slice(1 - lead, None)
    return Box((0, *box.offsets[same]), (stored[0], *box.sizes[same]))
