"""Mixture of experts in DeepSeek-V3's shape: fine-grained routed experts, shared experts, balancing without an auxiliary loss.

DeepSeek-V3 (arXiv 2412.19437), section 2.1.2. The router scores every expert for a token, s = sigmoid(W x). The choice is made on
s + bias: first the best `active_groups` groups, by the sum of each group's two best experts, then the best `active` experts within
them. The weights of the chosen are their s *without* the bias, normalised to sum to one and times `scale`. After each optimizer step
`balance_experts` moves the bias against the load (arXiv 2408.15664), so no auxiliary loss bends the gradient.

No token is dropped and nothing is padded: tokens are sorted by expert, and each expert multiplies its own contiguous rows
(`grouped.py`). Cost: the chosen experts' matrix products plus two permutations of `active` rows a token. When not to use it: models
so small that an expert's few rows no longer fill the matrix units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.config import ModelSection
from penstock.models.grouped import combine, dispatch, grouped_linear
from penstock.models.layers import FeedForward

if TYPE_CHECKING:
    from penstock.models.decoder import Decoder


class Router(nn.Module):
    """Chooses the experts of each token, and counts its choices while training."""

    bias_e: Tensor
    load_e: Tensor

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        self.settings = model.moe
        self.weight = nn.Parameter(torch.empty(model.moe.experts, model.dim))
        self.register_buffer("bias_e", torch.zeros(model.moe.experts))
        self.register_buffer("load_e", torch.zeros(model.moe.experts, dtype=torch.int64), persistent=False)

    def forward(self, x_nd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Chosen experts (n, active), their weights (n, active) and the tokens of each expert (e,)."""
        moe = self.settings
        logits_ne = self.logits(x_nd.to(self.weight.dtype))  # float32: near ties must not flip with the compute format
        scores_ne = logits_ne.sigmoid() if moe.scoring == "sigmoid" else logits_ne.softmax(-1)
        experts_na = self._choose(scores_ne.detach() + self.bias_e)
        weights_na = scores_ne.gather(1, experts_na)
        if moe.normalise:
            weights_na = weights_na / (weights_na.sum(-1, keepdim=True) + 1e-20)
        flat = experts_na.flatten()
        load_e = torch.zeros_like(self.load_e).scatter_add_(0, flat, torch.ones_like(flat))
        if self.training:
            self.load_e.add_(load_e)
        return experts_na, weights_na * moe.scale, load_e

    def logits(self, x_nd: Tensor) -> Tensor:
        """Every expert's score before the sigmoid or softmax, (n, e)."""
        return F.linear(x_nd, self.weight)

    def _choose(self, scores_ne: Tensor) -> Tensor:
        moe = self.settings
        if moe.active_groups < moe.groups:
            by_group = scores_ne.unflatten(1, (moe.groups, -1))
            group_scores = by_group.topk(2, dim=-1).values.sum(-1)
            chosen = torch.zeros_like(group_scores).scatter_(1, group_scores.topk(moe.active_groups, dim=-1).indices, 1.0)
            scores_ne = by_group.masked_fill(chosen.unsqueeze(-1) == 0, float("-inf")).flatten(1)
        return scores_ne.topk(moe.active, dim=-1).indices


class Experts(nn.Module):
    """The routed experts' SwiGLU matrices, stacked; each slice is (out, in) as in `Linear`."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        experts, hidden = model.moe.experts, model.moe.dim
        self.gate_efd = nn.Parameter(torch.empty(experts, hidden, model.dim))
        self.up_efd = nn.Parameter(torch.empty(experts, hidden, model.dim))
        self.down_edf = nn.Parameter(torch.empty(experts, model.dim, hidden))

    def forward(self, x_nd: Tensor, ends_e: Tensor) -> Tensor:
        """Map rows sorted by expert; expert e has the rows up to `ends_e[e]` (exclusive), int32."""
        gate = grouped_linear(x_nd, self.gate_efd, ends_e)
        up = grouped_linear(x_nd, self.up_efd, ends_e)
        return grouped_linear(F.silu(gate) * up, self.down_edf, ends_e)


class Transport(Protocol):
    """How rows reach their experts and come back; experts that live on several ranks have another than `stay`."""

    def __call__(self, x_md: Tensor, load_e: Tensor, experts: Experts) -> Tensor:
        """Map rows (m, d), sorted by expert, `load_e[e]` of them for expert e, to the experts' outputs in the same order."""


def stay(x_md: Tensor, load_e: Tensor, experts: Experts) -> Tensor:
    """Every expert is here."""
    return experts(x_md, load_e.cumsum(0).to(torch.int32))


class MixtureOfExperts(nn.Module):
    """The feed-forward of a block: routed experts plus shared ones that see every token."""

    def __init__(self, model: ModelSection) -> None:
        super().__init__()
        assert model.moe.dim, "resolve_model comes first"
        self.router = Router(model)
        self.experts = Experts(model)
        # Several shared experts are one wider one: their outputs are added.
        self.shared = FeedForward(model.dim, model.moe.shared * model.moe.dim) if model.moe.shared else None
        self.transport: Transport = stay

    def forward(self, x_btd: Tensor) -> Tensor:
        """Map (b, t, d) to (b, t, d)."""
        x_nd = x_btd.flatten(0, 1)
        experts_na, weights_na, load_e = self.router(x_nd)
        order = experts_na.flatten().argsort(stable=True)
        y_md = self.transport(dispatch(x_nd, order, experts_na.shape[1]), load_e, self.experts)
        y_nad = combine(y_md, order).unflatten(0, experts_na.shape)
        y_nd = (y_nad * weights_na.unsqueeze(-1)).sum(1).to(x_nd.dtype)
        if self.shared is not None:
            y_nd = y_nd + self.shared(x_nd)
        return y_nd.view_as(x_btd)


@torch.no_grad()
def balance_experts(model: Decoder, rate: float, reduce: Callable[[Tensor], object] | None) -> dict[str, float]:
    """Move every router's bias by `rate` towards its underloaded experts, reset the loads, and say how uneven they were.

    `reduce` adds a tensor over all ranks in place; it is called once, with the loads of all layers that are here, be it none. Returns
    `expert_load_max_over_mean`, the busiest expert's load over the mean, averaged over layers (1: perfectly even), or an empty
    dictionary where the model has no experts or has read no token.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    experts = model.model.moe.experts
    load_le = torch.stack([router.load_e for router in routers]).double() if routers else torch.zeros(0, experts, dtype=torch.float64)
    if reduce is not None and experts:
        reduce(load_le)
    if not routers:
        return {}
    mean_l1 = load_le.mean(1, keepdim=True)
    for router, error_e in zip(routers, mean_l1 - load_le):
        router.bias_e.add_(error_e.sign().to(router.bias_e.dtype), alpha=rate)
        router.load_e.zero_()
    uneven = (load_le.amax(1, keepdim=True) / mean_l1).mean().item()
    return {} if math.isnan(uneven) else {"expert_load_max_over_mean": uneven}


def forget_loads(model: Decoder) -> None:
    """Reset the loads that routers have counted, of a step that is not to count."""
    for router in (module for module in model.modules() if isinstance(module, Router)):
        router.load_e.zero_()
