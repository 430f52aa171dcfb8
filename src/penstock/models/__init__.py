"""Floor 2: decoder, attention, mixture of experts, loss, generation, Hugging Face import and export."""

from penstock.models.cache import KVCache
from penstock.models.decoder import Block, Decoder
from penstock.models.flops import count_parameters, flops_per_token
from penstock.models.generate import generate
from penstock.models.huggingface import export_hf, import_hf
from penstock.models.init import allocate, build_decoder, initial_value, load_decoder
from penstock.models.loss import lm_loss
from penstock.models.moe import balance_experts
from penstock.models.shape import resolve_model

__all__ = [
    "Block", "Decoder", "KVCache", "allocate", "balance_experts", "build_decoder", "count_parameters", "export_hf", "flops_per_token", "generate",
    "import_hf", "initial_value", "lm_loss", "load_decoder", "resolve_model",
]
