"""Which Hugging Face family holds a model, and its config.json in both directions.

    llama      plain; Llama 3's rope scaling             glm4_moe   experts by sigmoid with balancing bias, shared experts, groups:
    mistral    sliding window                                       DeepSeek-V3's routing with grouped-query attention
    qwen3      normalised queries and keys; window       qwen3_moe  experts by softmax, normalised queries and keys; window

A family is chosen from the model's section. What no family holds is refused in one sentence that names the field; so is, when
reading, a feature that this decoder does not have, since ignoring it would give other logits. Both styles of rotary settings are
read: `rope_theta` and `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5); the first is written, which both read.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from penstock.config import ModelSection, UserError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
}


def family_of(model: ModelSection) -> str:
    """The `model_type` that holds `model` exactly; raises `UserError` naming the field that none holds."""
    if model.moe.experts == 0:
        family = "qwen3" if model.qk_norm else "mistral" if model.sliding_window else "llama"
    else:
        family = "glm4_moe" if model.moe.scoring == "sigmoid" else "qwen3_moe"
    for broken, sentence in _unfit(model, family):
        if broken:
            raise UserError(f"cannot export to Hugging Face: {sentence}")
    return family


def to_hf_config(model: ModelSection, end_id: int | None) -> dict[str, Any]:
    """config.json of the resolved `model`; `end_id` is the token that ends (and starts) a document."""
    family, scaling = family_of(model), model.rope_scaling
    rope = {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original_context,
    }
    config = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "dtype": "float32",
        "torch_dtype": "float32",
        "vocab_size": model.vocab,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_dim,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": rope if scaling.factor != 1.0 else None,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "use_cache": True,
    }
    return config | _family_keys(model, family)


def from_hf_config(config: dict[str, Any]) -> ModelSection:
    """The resolved section of a config.json; raises `UserError` for a family or feature that Penstock does not have."""
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise UserError(f"config.json: model_type {family!r} is not supported; the supported ones are {', '.join(ARCHITECTURES)}")
    for broken, sentence in _foreign(config):
        if broken:
            raise UserError(f"config.json: {sentence}, which Penstock's decoder does not have")
    theta, scaling = _rope(config)
    heads, dim = _need(config, "num_attention_heads"), _need(config, "hidden_size")
    values = {
        "layers": _need(config, "num_hidden_layers"),
        "dim": dim,
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or dim // heads,
        "ffn_dim": _need(config, "intermediate_size"),
        "vocab": _need(config, "vocab_size"),
        "context": _need(config, "max_position_embeddings"),
        "norm_eps": _need(config, "rms_norm_eps"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qk_norm": config["model_type"].startswith("qwen3") or bool(config.get("use_qk_norm")),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
        "sliding_window": _window(config),
        "init_std": config.get("initializer_range", 0.02),
        "moe": _experts(config),
    }
    try:
        return ModelSection(**values)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(f"config.json: {'.'.join(map(str, wrong['loc']))} = {wrong['input']!r}: {wrong['msg']}") from None


def _unfit(model: ModelSection, family: str) -> list[tuple[bool, str]]:
    moe = model.moe
    softmax, sigmoid = family == "qwen3_moe", family == "glm4_moe"
    return [
        (family == "llama" and model.dim % model.heads != 0,
         f"Llama wants model.dim = {model.dim} to be a multiple of model.heads = {model.heads}"),
        (sigmoid and model.sliding_window > 0,
         f"no family holds model.sliding_window = {model.sliding_window} with model.moe.scoring = 'sigmoid'; set the first to 0"),
        (sigmoid and moe.shared == 0,
         "no family holds model.moe.shared = 0 with model.moe.scoring = 'sigmoid'; use a shared expert or softmax scoring"),
        (softmax and not model.qk_norm,
         "no family holds model.qk_norm = false with model.moe.scoring = 'softmax'; set model.qk_norm to true"),
        (softmax and moe.shared > 0,
         f"no family holds model.moe.shared = {moe.shared} with model.moe.scoring = 'softmax'; use no shared expert or sigmoid scoring"),
        (softmax and moe.scale != 1.0,
         f"no family holds model.moe.scale = {moe.scale} with model.moe.scoring = 'softmax'; use 1 or sigmoid scoring"),
        (softmax and moe.active_groups < moe.groups,
         f"no family holds model.moe.groups = {moe.groups} with model.moe.scoring = 'softmax'; use one group or sigmoid scoring"),
    ]  # fmt: skip


def _family_keys(model: ModelSection, family: str) -> dict[str, Any]:
    moe, window = model.moe, model.sliding_window or None
    qwen_window = {"use_sliding_window": window is not None, "sliding_window": window}
    match family:
        case "mistral":
            return {"sliding_window": window}
        case "qwen3":
            kind = "full_attention" if window is None else "sliding_attention"
            layers = 0 if window else model.layers  # those below stay full
            return qwen_window | {"max_window_layers": layers, "layer_types": [kind] * model.layers}
        case "qwen3_moe":
            return qwen_window | {
                "num_experts": moe.experts,
                "num_experts_per_tok": moe.active,
                "moe_intermediate_size": moe.dim,
                "norm_topk_prob": moe.normalise,
                "decoder_sparse_step": 1,
                "mlp_only_layers": list(range(moe.first_dense)),
            }
        case "glm4_moe":
            return {
                "n_routed_experts": moe.experts,
                "n_shared_experts": moe.shared,
                "num_experts_per_tok": moe.active,
                "moe_intermediate_size": moe.dim,
                "norm_topk_prob": moe.normalise,
                "routed_scaling_factor": moe.scale,
                "n_group": moe.groups,
                "topk_group": moe.active_groups,
                "first_k_dense_replace": moe.first_dense,
                "use_qk_norm": model.qk_norm,
                "partial_rotary_factor": 1.0,
                "num_nextn_predict_layers": 0,
            }
        case _:
            return {"mlp_bias": False}


def _foreign(config: dict[str, Any]) -> list[tuple[bool, str]]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    glm = config["model_type"] == "glm4_moe"
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.5 if glm else 1.0))
    dense = config.get("mlp_only_layers") or []
    return [
        (config.get("hidden_act", "silu") != "silu", f"hidden_act is {config.get('hidden_act')!r}"),
        (bool(config.get("attention_bias")), "attention_bias is set"),
        (bool(config.get("mlp_bias")), "mlp_bias is set"),
        (bool(config.get("quantization_config")), "quantization_config is set"),
        (any(isinstance(value, dict) for value in rope.values()), "rope_parameters differ by layer"),
        (kind not in ("default", "llama3"), f"the rope type is {kind!r}"),
        (partial != 1.0, f"partial_rotary_factor is {partial}"),
        (config.get("decoder_sparse_step", 1) != 1, f"decoder_sparse_step is {config.get('decoder_sparse_step')}"),
        (dense != list(range(len(dense))), f"mlp_only_layers is {dense}"),
        (len(_layer_kinds(config)) > 1, "some layers have a sliding window and others not"),
    ]


def _layer_kinds(config: dict[str, Any]) -> set[bool]:
    """Whether layers are windowed: a set of one truth value, or of both."""
    if config["model_type"] == "mistral":
        return {bool(config.get("sliding_window"))}
    windowed = bool(config.get("use_sliding_window")) and bool(config.get("sliding_window"))
    if config["model_type"] != "qwen3" or not windowed:
        return {windowed and config["model_type"] == "qwen3_moe"}
    layers, full_below = config.get("num_hidden_layers", 0), config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or ["sliding_attention" if i >= full_below else "full_attention" for i in range(layers)]
    return {kind == "sliding_attention" for kind in kinds}


def _window(config: dict[str, Any]) -> int:
    return config["sliding_window"] if _layer_kinds(config) == {True} else 0


def _rope(config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return theta, {}
    return theta, {
        "factor": _need(rope, "factor"),
        "low": _need(rope, "low_freq_factor"),
        "high": _need(rope, "high_freq_factor"),
        "original_context": _need(rope, "original_max_position_embeddings"),
    }


def _experts(config: dict[str, Any]) -> dict[str, Any]:
    if not config["model_type"].endswith("_moe"):
        return {}
    count = next((config[key] for key in ("n_routed_experts", "num_experts", "num_local_experts") if config.get(key)), 0)
    common = {
        "experts": count or _need(config, "num_experts"),
        "active": _need(config, "num_experts_per_tok"),
        "dim": _need(config, "moe_intermediate_size"),
        "normalise": bool(_need(config, "norm_topk_prob")),
    }
    if config["model_type"] == "qwen3_moe":  # this family has no balancing bias, so none is learnt
        return common | {"scoring": "softmax", "shared": 0, "first_dense": len(config.get("mlp_only_layers") or []), "bias_rate": 0.0}
    return common | {
        "scoring": "sigmoid",
        "shared": _need(config, "n_shared_experts"),
        "first_dense": _need(config, "first_k_dense_replace"),
        "scale": _need(config, "routed_scaling_factor"),
        "groups": _need(config, "n_group"),
        "active_groups": _need(config, "topk_group"),
    }


def _need(config: dict[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise UserError(f"config.json: {key} is missing; the folder is not a complete Hugging Face model")
    return config[key]
