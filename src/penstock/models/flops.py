"""How many parameters and floating-point operations a model has, from its section alone.

Training FLOPs of a token, after PaLM, appendix B (Chowdhery et al., arXiv 2204.02311):

    6 · (parameters in matrix products, the head's included and the embedding look-up's not) + 12 · layers · heads · head_dim · span

Each parameter costs 2 operations forward and 4 backward; attention's two products cost 4 · head_dim · span a head forward and twice
that backward. `span` is the context, or the sliding window where that is shorter; as in PaLM the causal half is not taken off. Of a
mixture of experts, the experts a token goes to count. Norms, rotations and softmax are left out; recomputation is not counted, so a
utilisation from this figure is "model FLOPs utilisation".
"""

from __future__ import annotations

from penstock.config import ModelSection


def flops_per_token(model: ModelSection) -> float:
    """Floating-point operations to train the resolved `model` on one token at its full context."""
    span = min(model.sliding_window or model.context, model.context)
    attention = 12 * model.layers * model.heads * model.head_dim * span
    return float(6 * _matrix_parameters(model, model.moe.active) + attention)


def count_parameters(model: ModelSection) -> dict[str, int]:
    """Parameters of the resolved `model`: `total`, and `active`, without the experts that a given token does not go to."""
    norms = model.dim * (2 * model.layers + 1) + (2 * model.head_dim * model.layers if model.qk_norm else 0)
    embedding = 0 if model.tie_embeddings else model.vocab * model.dim
    rest = norms + embedding
    return {
        "total": _matrix_parameters(model, model.moe.experts) + rest,
        "active": _matrix_parameters(model, model.moe.active) + rest,
    }


def _matrix_parameters(model: ModelSection, experts: int) -> int:
    """Parameters in matrix products with so many routed experts per layer; tied embeddings count once, as the head."""
    attention = 2 * model.dim * model.head_dim * (model.heads + model.kv_heads)
    dense_layers = model.moe.first_dense if model.moe.experts else model.layers
    dense = 3 * model.dim * model.ffn_dim
    sparse = 3 * model.dim * model.moe.dim * (experts + model.moe.shared) + model.dim * model.moe.experts
    return model.layers * attention + dense_layers * dense + (model.layers - dense_layers) * sparse + model.dim * model.vocab
