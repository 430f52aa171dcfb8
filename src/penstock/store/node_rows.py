"""Tensors of a state that have a row for every node, taken up on other nodes: each gets its part of the rows' sum, their mean, or zeros.

What such a row is, the engine knows (`engine/state.py`); here is only the arithmetic, on the boxes that a rank holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from penstock.parallel import Box
from penstock.store.folder import Folder
from penstock.store.manifest import Manifest
from penstock.store.reading import Local, read_boxes


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
            rows, lead = sources[name].views[index], len(sources[name].shape) - len(local.shape)
            one = rows if lead < 0 else rows.sum(0, keepdim=lead == 0)
            parts = local.shape[0] if when_nodes_change(name) == "sum" else rows.shape[0] if lead >= 0 else 1
            view.copy_((one / parts).expand_as(view))


def _all_rows(box: Box, stored: tuple[int, ...], lead: int) -> Box:
    """The part of a stored tensor from which a wanted box is made; it has `lead` dims more."""
    if lead < 0:
        return Box(box.offsets[1:], box.sizes[1:])
    same = slice(1 - lead, None)
    return Box((0, *box.offsets[same]), (stored[0], *box.sizes[same]))
