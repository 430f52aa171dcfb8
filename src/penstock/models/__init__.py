"""Floor 2: decoder, attention, mixture of experts, loss, generation, Hugging Face import and export."""

from penstock.models.cache import KVCache
from penstock.models.decoder import Block, Decoder
from penstock.models.flops import count_parameters, flops_per_token
from penstock.models.generate import generate
from penstock.models.grow_values import grown_moment, grown_value
from penstock.models.growth import Growth, plan_growth
from penstock.models.huggingface import export_hf, import_hf
from penstock.models.init import allocate, build_decoder, drawn_parameter, initial_value, load_decoder
from penstock.models.loss import lm_loss
from penstock.models.moe import balance_experts, forget_loads
from penstock.models.shape import resolve_model

__all__ = [
    "Block", "Decoder", "Growth", "KVCache", "allocate", "balance_experts", "build_decoder", "count_parameters", "drawn_parameter", "export_hf",
    "flops_per_token", "forget_loads", "generate", "grown_moment", "grown_value", "import_hf", "initial_value", "lm_loss", "load_decoder",
    "plan_growth", "resolve_model",
]
