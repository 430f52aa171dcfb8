"""The shard axis: weights, gradients and moments cut over data-parallel ranks by torch's FSDP2, block by block.

ZeRO (Rajbhandari et al., arXiv 1910.02054) in its three degrees, chosen by `layout.zero`:

    3   a block's weights are gathered when it computes and dropped after it; gradients are reduce-scattered after every micro-batch
    2   weights stay gathered from a step's first forward pass to its last backward pass; gradients as in 3
    1   weights as in 2; gradients stay whole until the last micro-batch's are reduce-scattered

The optimizer always works on the cut. Context ranks hold the same weights and share the burden. Sums are left as sums (factor 1): the engine weights
the loss by the global token count. Experts' weights are sharded over the ranks that hold the same experts.

Elements one rank sends in a step for P weights over s ranks and m micro-batches: gathers 2 m P (s - 1)/s in degree 3 (forward and backward),
P (s - 1)/s in 1 and 2; gradients m P (s - 1)/s in 2 and 3, P (s - 1)/s in 1. When not to use it: where weights and moments fit on every rank,
plain replication sends less than degree 3 and is simpler to overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from penstock.comm import Axis
from penstock.comm.axis import all_gather_into, reduce_scatter_into
from penstock.models import Decoder
from penstock.models.moe import Experts
from penstock.parallel.mesh import Mesh
from penstock.parallel.placement import Placement


class Sharder:
    """Handle on a sharded decoder; on one that is not sharded, every verb does nothing."""

    def __init__(self, modules: Sequence[FSDPModule] = (), zero: int = 3) -> None:
        self._modules, self._zero = modules, zero

    def begin_micro_batch(self, last: bool) -> None:
        """Prepare for a forward and a backward pass; `last` says that the optimizer follows."""
        for module in self._modules:
            module.set_requires_gradient_sync(last or self._zero > 1, recurse=False)
            module.set_reshard_after_backward(last or self._zero == 3, recurse=False)

    def reshard(self) -> None:
        """Drop gathered weights, so that the next pass gathers what the cut now holds."""
        for module in self._modules:
            module.reshard()


def shard_weights(decoder: Decoder, mesh: Mesh, plan: dict[str, Placement]) -> Sharder:
    """Cut the parameters of `decoder`, already in their local shapes on the grid, over the shard axes; `plan` names the dims."""
    layout = mesh.layout
    if not layout.sharded:
        return Sharder()
    dense_mesh, dense_axis = mesh.device_mesh(*layout.shard_axes), mesh.axis(*layout.shard_axes)
    keep = layout.zero == 3
    modules: list[FSDPModule] = []
    whole_experts: set[nn.Parameter] = set()
    for name, block in decoder.blocks.items():
        experts = next((module for module in block.modules() if isinstance(module, Experts)), None)
        if experts is not None and layout.expert_shard > 1:
            dims = {p: Shard(plan[f"blocks.{name}.ffn.experts.{key}"].splits[-1].dim) for key, p in experts.named_parameters()}
            axis = mesh.axis("expert_shard")
            modules.append(_wrap(experts, mesh.device_mesh("expert_shard"), axis, keep, placement=dims.__getitem__))
        elif experts is not None:
            whole_experts |= set(experts.parameters())
        modules.append(_wrap(block, dense_mesh, dense_axis, keep, ignored=whole_experts))
    modules.append(_wrap(decoder, dense_mesh, dense_axis, keep=False, ignored=whole_experts))
    register_fsdp_forward_method(decoder, "loss")
    return Sharder(modules, layout.zero)


def _wrap(module: nn.Module, mesh: Any, axis: Axis, keep: bool, placement: Any = None, ignored: set[nn.Parameter] | None = None) -> FSDPModule:
    wrapped = fully_shard(module, mesh=mesh, reshard_after_forward=keep, shard_placement_fn=placement, ignored_params=ignored)
    wrapped.set_gradient_divide_factor(1.0)
    wrapped.set_force_sum_reduction_for_comms(True)
    wrapped.set_custom_all_gather(cast(Any, _CountedAllGather(axis)))
    wrapped.set_custom_reduce_scatter(cast(Any, _CountedReduceScatter(axis)))
    return wrapped


class _CountedAllGather:
    """FSDP2's all-gather of weights, in the meter. (FSDP2 asks for these two methods, whatever the class.)"""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for a collective."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False) -> Any:
        self._axis.count("weights", "all_gather", output_tensor.numel() * output_tensor.element_size())
        return all_gather_into(output_tensor, input_tensor, group=group, async_op=async_op)


class _CountedReduceScatter(_CountedAllGather):
    """FSDP2's reduce-scatter of gradients, in the meter."""

    def __call__(  # type: ignore[override]
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> Any:
        self._axis.count("gradients", "reduce_scatter", input_tensor.numel() * input_tensor.element_size())
        return reduce_scatter_into(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
