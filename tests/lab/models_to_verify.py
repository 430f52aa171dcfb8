"""Small questions for the equivalence matrix: grouped heads, or seven that do not divide, odd widths and vocabulary, experts, few tokens."""

from penstock.config import Config, load_config, with_values
from penstock.lab.verify import question

SMALL = [
    "model.layers=2", "model.dim=24", "model.heads=8", "model.kv_heads=2", "model.head_dim=4", "model.ffn_dim=17", "model.vocab=37", "model.context=24",
    "model.init_std=0.1", "optim.lr=0.01", "layout.timeout_s=60",
]  # fmt: skip
EXPERTS = [
    "model.moe.experts=6", "model.moe.first_dense=1", "model.moe.dim=9", "model.moe.active=2", "model.moe.groups=3", "model.moe.active_groups=2",
    "model.moe.bias_rate=0.01", "model.heads=7", "model.kv_heads=7",
]  # fmt: skip


def small_question(experts: bool, **changes: object) -> Config:
    """The config of a model that takes a hundredth of a second a step."""
    config = question(load_config(None, [*SMALL, *(EXPERTS if experts else [])]), full=True)
    return with_values(config, {"batch.global": 24, "train.loss_chunk": 29} | {key.replace("__", "."): value for key, value in changes.items()})
