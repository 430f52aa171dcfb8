"""Weights and logits agree with transformers' own implementation, in both directions, on configurations drawn at random."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.config import ModelSection, UserError
from penstock.models import Decoder, build_decoder, export_hf, import_hf, resolve_model


@pytest.fixture(scope="module")
def transformers():
    """The library, which takes seconds to import: only tests that want it wait for it."""
    found = pytest.importorskip("transformers")
    found.logging.set_verbosity_error()
    found.utils.logging.disable_progress_bar()
    return found


FAMILIES = ["llama", "mistral", "qwen3", "qwen3_moe", "glm4_moe"]
TOKENS, VOCAB = 24, 97


def random_section(family: str, draw: random.Random) -> ModelSection:
    """A small model that the family holds, with everything that the family leaves free drawn at random."""
    kv_heads, per_group = draw.choice([1, 2]), draw.choice([1, 2, 3])
    heads, head_dim = kv_heads * per_group, draw.choice([4, 8, 16])
    dim = heads * draw.choice([4, 8, 12])  # a multiple of 4: transformers' grouped matmul wants rows of 16 bytes
    values = {
        "layers": draw.choice([2, 3]), "dim": dim, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "ffn_dim": draw.choice([24, 40]), "context": 64, "norm_eps": draw.choice([1e-6, 1e-5]), "init_std": 0.2,
        "rope_theta": draw.choice([100.0, 10000.0, 500000.0]), "tie_embeddings": draw.random() < 0.5,
        "qk_norm": family.startswith("qwen3") or (family == "glm4_moe" and draw.random() < 0.5),
    }  # fmt: skip
    if draw.random() < 0.5:
        values["rope_scaling"] = {"factor": draw.choice([2.0, 8.0]), "low": 1.0, "high": 4.0, "original_context": draw.choice([16, 32])}
    if family == "mistral" or (family.startswith("qwen3") and draw.random() < 0.5):
        values["sliding_window"] = draw.choice([1, 5, 11])
    if family.endswith("moe"):
        values["moe"] = random_experts(family, draw)
    return resolve_model(ModelSection(**values), VOCAB)


def random_experts(family: str, draw: random.Random) -> dict:
    groups = draw.choice([1, 2, 4])
    common = {"experts": 8, "active": draw.choice([1, 2]), "dim": 16, "normalise": draw.random() < 0.5, "first_dense": draw.choice([0, 1])}
    if family == "qwen3_moe":
        return common | {"scoring": "softmax", "shared": 0}
    return common | {
        "scoring": "sigmoid", "shared": draw.choice([1, 2]), "scale": draw.choice([1.0, 2.5]),
        "groups": groups, "active_groups": draw.randint(1, groups),
    }  # fmt: skip


def randomised(decoder: Decoder, seed: int) -> Decoder:
    """Give norms and balancing biases values that matter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    softmax = decoder.model.moe.scoring == "softmax"
    for name, value in decoder.state_dict().items():
        if value.dim() == 1 and not (softmax and name.endswith("bias_e")):
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.3)
    return decoder.eval()


def our_logits(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_our_export_gives_the_same_logits_in_transformers_and_comes_back_unchanged(tmp_path, transformers, family, seed):
    section = random_section(family, random.Random(f"{family}{seed}"))
    decoder = randomised(build_decoder(section, seed, "cpu"), seed)
    export_hf(decoder, tmp_path / "hf", end_id=3, file_bytes=20_000)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert theirs.config.model_type == family
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(VOCAB, (2, TOKENS))
    with torch.no_grad():
        torch.testing.assert_close(our_logits(decoder, tokens), theirs(tokens).logits, rtol=0, atol=1e-4)

    model, tensors = import_hf(tmp_path / "hf")
    assert model == section.model_copy(update={"moe": section.moe.model_copy(update={"bias_rate": model.moe.bias_rate})})
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, tensors.pop(name)), name
    assert not tensors


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4, 8))
def test_transformers_own_model_gives_the_same_logits_here(tmp_path, transformers, family, seed):
    """Starts from transformers' config and initial weights, saved by transformers (its rope_parameters style)."""
    section = random_section(family, random.Random(f"{family}{seed}"))
    export_hf(build_decoder(section, seed, "cpu"), tmp_path / "ours", end_id=None)
    torch.manual_seed(seed)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path / "ours")).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model, tensors = import_hf(tmp_path / "theirs")
    decoder = Decoder(model).eval()
    decoder.load_state_dict(tensors)
    tokens = torch.randint(VOCAB, (2, TOKENS))
    with torch.no_grad():
        torch.testing.assert_close(our_logits(decoder, tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


def small_export(tmp_path, **values):
    section = resolve_model(ModelSection(layers=2, dim=16, heads=2, context=16, **values), VOCAB)
    export_hf(build_decoder(section, 0, "cpu"), tmp_path / "hf", end_id=None)
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"moe": {"experts": 4, "scoring": "softmax", "shared": 0}}, "model.qk_norm"),
        ({"qk_norm": True, "moe": {"experts": 4, "scoring": "softmax"}}, "model.moe.shared"),
        ({"qk_norm": True, "moe": {"experts": 4, "scoring": "softmax", "shared": 0, "scale": 2.0}}, "model.moe.scale"),
        ({"qk_norm": True, "moe": {"experts": 4, "scoring": "softmax", "shared": 0, "groups": 2}}, "model.moe.groups"),
        ({"moe": {"experts": 4, "shared": 0}}, "model.moe.shared"),
        ({"moe": {"experts": 4}, "sliding_window": 4}, "model.sliding_window"),
    ],
)
def test_a_model_that_no_family_holds_is_refused_by_the_name_of_the_field(tmp_path, values, field):
    with pytest.raises(UserError, match=field):
        small_export(tmp_path, **values)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model_type", "gpt2", "gpt2"),
        ("hidden_act", "gelu", "hidden_act"),
        ("attention_bias", True, "attention_bias"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "yarn"),
        ("quantization_config", {"quant_method": "fp8"}, "quantization_config"),
        ("hidden_size", None, "hidden_size"),
        ("rms_norm_eps", 7.0, "norm_eps"),
    ],
)
def test_a_foreign_config_is_refused_by_the_name_of_the_key(tmp_path, key, value, named):
    folder = small_export(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=named):
        import_hf(folder)


def test_missing_surplus_misshapen_and_damaged_weights_are_refused(tmp_path):
    folder = small_export(tmp_path)
    file = folder / "model.safetensors"
    good = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    for tensors in (
        {key: value for key, value in good.items() if key != name},
        good | {name: good[name][:-1]},
        good | {"model.layers.1.mlp.up_proj.bias": torch.zeros(3)},
    ):
        save_file(tensors, file)
        with pytest.raises(UserError, match="up_proj"):
            import_hf(folder)
    save_file(good, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        import_hf(folder)
    file.unlink()
    with pytest.raises(UserError, match="safetensors"):
        import_hf(folder)
    with pytest.raises(UserError, match=r"config\.json"):
        import_hf(tmp_path / "nothing")


def test_export_does_not_touch_a_folder_that_holds_something(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="empty"):
        small_export(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["hf", "mine.txt"]


def test_a_learnt_bias_that_qwen3_moe_cannot_hold_is_refused(tmp_path):
    section = resolve_model(ModelSection(dim=16, heads=2, qk_norm=True, moe={"experts": 4, "scoring": "softmax", "shared": 0}), VOCAB)
    decoder = build_decoder(section, 0, "cpu")
    decoder.state_dict()["blocks.1.ffn.router.bias_e"][0] = 0.001
    with pytest.raises(UserError, match="bias_rate"):
        export_hf(decoder, tmp_path / "hf", end_id=None)
