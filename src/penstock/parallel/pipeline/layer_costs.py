"""What every piece of a model costs for one micro-batch: the layers one by one, the embedding, and the head with its norm and loss.

A piece's `Cost` is its three times, in one unit of the caller's choice, and its bytes. Before anything ran they are estimated in FLOPs from shapes,
for the n tokens that a rank computes (matrices cut over t tensor ranks; N numbers in those a token goes through; s tokens it sees, on average):

    layer       forward 2 n N / t + 4 n heads · head_dim · s / t, gradient of the input 2 n N / t + twice the attention's, of the weights 2 n N / t
    head        forward 6 n d v / t, then nothing: the fused loss has its gradients ready when it has the loss (`models/loss.py`)
    embedding   a look-up: n d numbers written forward, and added to its gradient backward

Of the attention the causal half counts, s = w - w (w - 1) / 2T for a window of w in a context of T, since kernels skip what is masked; so the sum is
below `models/flops.py`, which counts as papers do. Kernels reach different shares of the peak: measured times replace these as soon as there are any
(`stage_times.py`). Cost: none. When not to use: to predict seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from penstock.config import ModelSection
from penstock.models.decoder import has_experts
from penstock.parallel.cost.activations import ends_activations, layer_activations, layer_casts, loss_chunk
from penstock.parallel.cost.estimate import placements
from penstock.parallel.cost.traffic import Workload


class Cost(NamedTuple):
    """One piece of the model on one rank: times of a micro-batch, `state` bytes of weights, gradients and moments, `kept` bytes until backward."""

    forward: float
    input_grad: float
    weight_grad: float
    state: float = 0.0
    kept: float = 0.0

    @property
    def time(self) -> float:
        """All that one micro-batch takes."""
        return self.forward + self.input_grad + self.weight_grad


@dataclass(frozen=True)
class LayerCosts:
    """Costs of all pieces of a model: `layers` in order, the embedding, and the head with the final norm and the loss."""

    layers: tuple[Cost, ...]
    embedding: Cost
    head: Cost


def estimated_costs(work: Workload, moments: int = 2) -> LayerCosts:
    """FLOPs and bytes of every piece of `work`'s model on one rank; `moments` numbers a weight are kept by the optimizer."""
    model, tokens, layout = work.model, work.tokens, work.layout
    ranks = layout.column if layout.topology == "2.5d" else layout.row * layout.column  # in 2.5-D the rows have tokens of their own
    layers = [_layer(work, layer, tokens / ranks, moments) for layer in range(model.layers)]
    table = model.vocab * model.dim
    look_up = tokens * model.dim / ranks
    embedding = Cost(look_up, 0.0, look_up, _state(work, ("embedding.",), moments))
    names = ("norm.", "embedding." if model.tie_embeddings else "head.")
    head = Cost(6 * tokens / ranks * table, 0.0, 0.0, _state(work, names, moments) + loss_chunk(work), ends_activations(work))
    return LayerCosts(tuple(layers), embedding, head)


def _layer(work: Workload, layer: int, tokens: float, moments: int) -> Cost:
    model = work.model
    product, attention = 2.0 * tokens * layer_matrices(model, layer), 4.0 * tokens * model.heads * model.head_dim * seen_tokens(model)
    state = _state(work, (f"blocks.{layer}.",), moments)
    kept = layer_activations(work, layer) + (layer_casts(work, layer) if work.layout.topology == "2.5d" and not work.layout.sharded else 0)
    return Cost(product + attention, product + 2 * attention, product, state, kept)


def layer_matrices(model: ModelSection, layer: int) -> int:
    """Numbers in block `layer`'s matrices that a token goes through."""
    attention = 2 * model.dim * model.head_dim * (model.heads + model.kv_heads)
    moe = model.moe
    if not has_experts(model, layer):
        return attention + 3 * model.dim * model.ffn_dim
    return attention + 3 * model.dim * moe.dim * (moe.active + moe.shared) + model.dim * moe.experts


def seen_tokens(model: ModelSection) -> float:
    """Tokens that a query attends to, on average over the context."""
    window = min(model.sliding_window or model.context, model.context)
    return window - window * (window - 1) / (2 * model.context)


def _state(work: Workload, prefixes: tuple[str, ...], moments: int) -> float:
    """Bytes of the weights whose names begin so, of their gradients and moments, on this rank."""
    shapes = [placement.local_shape(work.layout, work.rank) for name, placement in placements(work).items() if name.startswith(prefixes)]
    return float(sum(math.prod(shape) for shape in shapes) * work.master * (2 + moments))
