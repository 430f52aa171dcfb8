"""The shard axis: weights, gradients and moments cut over data-parallel ranks by torch's FSDP2, block by block.

ZeRO (Rajbhandari et al., arXiv 1910.02054) in its three degrees, chosen by `layout.zero`:

    3   a block's weights are gathered when it computes and dropped after it; gradients are reduce-scattered after every micro-batch
    2   weights stay gathered from a step's first forward pass to its last backward pass; gradients as in 3
    1   weights as in 2; gradients stay whole until the last micro-batch's are reduce-scattered

Stages of a pipeline have several micro-batches under way, and weights' gradients that come after the backward pass: there gradients stay whole
until the stage's last one in every degree, and travel once a step. The optimizer always works on the cut. Where activations are narrower than
weights, a block's weights travel in the activations' format and their gradients are summed in the weights': a gathered block needs no second copy,
and none is kept for the backward pass. Context ranks hold the same weights and share the burden. Sums are left as sums (factor 1): the engine
weights the loss by the global token count. Experts' weights are sharded over the ranks that hold the same experts.

Norms and routers of blocks are not sharded (`plan.py`).

Elements one rank sends in a step for P weights over s ranks and m micro-batches: gathers 2 m P (s - 1)/s in degree 3 (forward and backward),
P (s - 1)/s in 1 and 2; gradients m P (s - 1)/s in 2 and 3, P (s - 1)/s in 1. When not to use it: where weights and moments fit on every rank,
plain replication sends less than degree 3 and is simpler to overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn

from penstock.comm import Axis
from penstock.comm.axis import all_gather_into, reduce_scatter_into
from penstock.models import Decoder
from penstock.models.moe import Experts
from penstock.parallel.mesh import Mesh
from penstock.parallel.placement import Placement

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy


@dataclass(frozen=True)
class Formats:
    """Number formats: of the weights, moments and gradient sums, and of activations and matrix products."""

    master: torch.dtype = torch.float32
    compute: torch.dtype = torch.float32


class Sharder:
    """Handle on a sharded decoder; on one that is not sharded, every verb does nothing."""

    def __init__(self, modules: Sequence[FSDPModule] = (), zero: int = 3) -> None:
        self._modules, self._zero = modules, zero

    def begin_micro_batch(self, last: bool) -> None:
        """Prepare for a forward and a backward pass; `last` says that the optimizer follows."""
        for module in self._modules:
            module.set_requires_gradient_sync(last or self._zero > 1, recurse=False)
            module.set_reshard_after_backward(last or self._zero == 3, recurse=False)

    def begin_overlapping(self) -> None:
        """Prepare for micro-batches whose passes overlap: gradients stay whole until `reduce`."""
        for module in self._modules:
            module.set_requires_gradient_sync(False, recurse=False)
            module.set_reshard_after_backward(self._zero == 3, recurse=False)
        if self._modules:
            self._modules[-1].set_is_last_backward(False)

    def keep(self) -> None:
        """Add gradients that came outside a backward pass to the sums, in the sums' format."""
        for group in self._groups():
            for parameter in group.fsdp_params:
                whole = getattr(parameter, "_unsharded_param", None)
                if whole is not None and whole.grad is not None:
                    if parameter.unsharded_accumulated_grad is None:
                        parameter.to_accumulated_grad_if_needed()
                    else:
                        parameter.unsharded_accumulated_grad += whole.grad
                        whole.grad = None

    def reduce(self, blocks: Iterable[nn.Module]) -> None:
        """The gradients of these blocks are complete: reduce-scatter them, and drop the gathered weights."""
        inside = {module for block in blocks for module in block.modules()}
        self._reduce([module for module in self._modules if module in inside])

    def finish(self) -> None:
        """Reduce-scatter what is left, and wait for all."""
        if self._modules:
            self._reduce([self._modules[-1]])
            self._modules[-1].set_is_last_backward(True)
            cast(Any, self._modules[-1])._get_fsdp_state()._root_post_backward_final_callback()

    def _reduce(self, modules: Sequence[FSDPModule]) -> None:
        for module in reversed(modules):
            module.set_requires_gradient_sync(True, recurse=False)
            module.set_reshard_after_backward(True, recurse=False)
            for group in _groups_of(module):
                group.post_backward()

    def _groups(self) -> list[Any]:
        return [group for module in self._modules for group in _groups_of(module)]

    def reshard(self) -> None:
        """Drop gathered weights, so that the next pass gathers what the cut now holds."""
        for module in self._modules:
            module.reshard()


def _groups_of(module: FSDPModule) -> list[Any]:
    """FSDP2's groups of a module's parameters, which newer releases may have several of."""
    state = cast(Any, module)._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    return list(groups) if groups is not None else [state._fsdp_param_group] if state._fsdp_param_group else []


def shard_weights(decoder: Decoder, mesh: Mesh, plan: dict[str, Placement], formats: Formats) -> Sharder:
    """Cut the parameters of `decoder`, already in their local shapes on the grid, over the shard axes, as `plan` says."""
    layout = mesh.layout
    if not layout.sharded:
        return Sharder()
    from torch.distributed.fsdp import MixedPrecisionPolicy, register_fsdp_forward_method  # here, as it takes two seconds
    from torch.distributed.tensor import Shard

    dense_mesh, dense_axis = mesh.device_mesh(*layout.shard_axes), mesh.axis(*layout.shard_axes)
    cut_axes = (layout.shard_axes, layout.expert_shard_axes)
    whole = {p for name, p in decoder.named_parameters() if not any(split.axes in cut_axes for split in plan[name].splits)}
    drop, travel = layout.zero == 3, MixedPrecisionPolicy(formats.compute, formats.master, cast_forward_inputs=False)
    modules: list[FSDPModule] = []
    for name, block in decoder.blocks.items():
        experts = next((module for module in block.modules() if isinstance(module, Experts)), None)
        if experts is not None and layout.expert_shard > 1:
            dims = {p: Shard(plan[f"blocks.{name}.ffn.experts.{key}"].splits[-1].dim) for key, p in experts.named_parameters()}
            axis = mesh.axis("expert_shard")
            modules.append(_wrap(experts, mesh.device_mesh("expert_shard"), axis, drop, whole, travel, dims.__getitem__))
        modules.append(_wrap(block, dense_mesh, dense_axis, drop, whole, travel))
    modules.append(_wrap(decoder, dense_mesh, dense_axis, False, whole, MixedPrecisionPolicy(cast_forward_inputs=False)))
    register_fsdp_forward_method(decoder, "stage" if layout.pipeline > 1 else "loss")
    return Sharder(modules, layout.zero)


def _wrap(
    module: nn.Module, mesh: Any, axis: Axis, drop: bool, whole: set[nn.Parameter], travel: MixedPrecisionPolicy, placement: Any = None
) -> FSDPModule:
    """Shard the parameters of `module` that are neither `whole` nor an inner module's; `drop` them after the forward pass."""
    from torch.distributed.fsdp import fully_shard

    wrapped = fully_shard(module, mesh=mesh, reshard_after_forward=drop, shard_placement_fn=placement, ignored_params=whole, mp_policy=travel)
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
        with self._waiting("weights", input_tensor):
            return all_gather_into(output_tensor, input_tensor, group=group, async_op=async_op)

    def _waiting(self, purpose: str, tensor: torch.Tensor) -> AbstractContextManager[None]:
        """Time a call that the host waits for; on CUDA it runs beside the computation, on a stream of FSDP2's."""
        return nullcontext() if tensor.is_cuda else self._axis.meter.waiting(f"{self._axis.name}.{purpose}", False)


class _CountedReduceScatter(_CountedAllGather):
    """FSDP2's reduce-scatter of gradients, in the meter."""

    def __call__(  # type: ignore[override]
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> Any:
        self._axis.count("gradients", "reduce_scatter", input_tensor.numel() * input_tensor.element_size())
        with self._waiting("gradients", input_tensor):
            return reduce_scatter_into(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
