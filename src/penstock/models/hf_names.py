"""The names of parameters in Hugging Face's checkpoints: one for each of ours, or one an expert for the stacked ones."""

from __future__ import annotations

TOP = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}
PARTS = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
    "ffn.shared.gate": "mlp.shared_experts.gate_proj",
    "ffn.shared.up": "mlp.shared_experts.up_proj",
    "ffn.shared.down": "mlp.shared_experts.down_proj",
    "ffn.router": "mlp.gate",
}
STACKED = {"ffn.experts.gate_efd": "gate_proj", "ffn.experts.up_efd": "up_proj", "ffn.experts.down_edf": "down_proj"}
BIAS = "ffn.router.bias_e"


def hf_names(name: str, experts: int) -> list[str]:
    """Hugging Face's names of our tensor `name`; for stacked experts one for each of the `experts`, in order."""
    if name in TOP:
        return [TOP[name]]
    _, layer, inner = name.split(".", 2)
    prefix = f"model.layers.{layer}"
    if inner in STACKED:
        return [f"{prefix}.mlp.experts.{expert}.{STACKED[inner]}.weight" for expert in range(experts)]
    if inner == BIAS:
        return [f"{prefix}.mlp.gate.e_score_correction_bias"]
    return [f"{prefix}.{PARTS[inner.removesuffix('.weight')]}.weight"]
