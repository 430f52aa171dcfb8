"""A training state handed from one split of the layers to another, in memory: between two steps, in the processes that stay.

Only who holds a layer changes; how it is cut over the other axes does not. So each tensor travels along the pipeline axis, between ranks with the
same place on all others, from the first rank that had it to those that lacked it, bit for bit, in one all-to-all for each number format.

Cost: the moved layers' weights, moments and averages over the pipeline axis (12 bytes a parameter for AdamW in float32), and room for them once. When
not to use it: where the other axes change too; a snapshot then is the way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from penstock.parallel.mesh import Mesh
from penstock.parallel.placement import Placement


@torch.no_grad()
def hand_over(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], before: Mapping[str, Placement], after: Mapping[str, Placement], mesh: Mesh
) -> None:
    """Fill `new`, this rank's tensors placed as `after` says, from all ranks' `old`, placed as `before` says; both have all names on every rank.

    The placements of a name differ in their holders only; a tensor without one is whole on every rank.
    """
    axis = mesh.axis("pipeline")
    for dtype in sorted({tensor.dtype for tensor in old.values()}, key=str):
        send: list[list[Tensor]] = [[] for _ in axis.ranks]
        come: list[list[Tensor]] = [[] for _ in axis.ranks]
        for name in sorted(name for name, tensor in old.items() if tensor.dtype == dtype):
            had, has = (placements[name].holders if name in placements else () for placements in (before, after))
            if not has or (axis.index in had and axis.index in has):
                new[name].copy_(old[name])
            for target in sorted(set(has) - set(had)):
                if axis.index == had[0]:
                    send[target].append(old[name].reshape(-1))
                if axis.index == target:
                    come[had[0]].append(new[name])
        flat = torch.cat([torch.empty(0, dtype=dtype, device=mesh.world.device), *(part for parts in send for part in parts)])
        sent, coming = ([sum(part.numel() for part in parts) for parts in side] for side in (send, come))
        got = axis.all_to_all(flat, sent, coming, "hand_over")
        targets = [tensor for parts in come for tensor in parts]
        for tensor, piece in zip(targets, got.split([tensor.numel() for tensor in targets])):
            tensor.copy_(piece.view(tensor.shape))
