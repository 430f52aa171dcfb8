"""Settings: read, refused with the mend, written back."""

import tomllib

import pytest

from penstock.config import Config, ConfigError, UserError, explain, load_config, parse_config, preset_names, to_toml, walk_settings, with_values
from penstock.config.load import parse_sets

SETTINGS = [name for name, _ in walk_settings()]


def misspellings(name):
    """Three ways to get one key wrong: a letter dropped, doubled, and two swapped."""
    section, _, leaf = name.rpartition(".")
    wrong = {leaf[:-1], leaf + leaf[-1], leaf[1:2] + leaf[:1] + leaf[2:]} - {leaf, ""}
    return [f"{section}.{w}" for w in wrong if f"{section}.{w}" not in SETTINGS]


@pytest.mark.parametrize("name", SETTINGS)
def test_any_single_misspelt_key_is_refused_and_the_valid_one_named(name):
    for wrong in misspellings(name):
        with pytest.raises(ConfigError) as error:
            load_config(None, [f"{wrong}=1"])
        assert wrong in str(error.value)
    section = name.split(".")[0]
    with pytest.raises(ConfigError, match=section):
        load_config(None, [f"{section}x.{name.split('.', 1)[1]}=1"])


def test_the_nearest_valid_key_is_suggested_at_every_depth():
    for wrong, right in {"optm.lr": "optim", "optim.lrr": "optim.lr", "model.moe.expert": "model.moe.experts", "layrs": "model.layers"}.items():
        with pytest.raises(ConfigError, match=f"did you mean '{right}'"):
            load_config(None, [f"{wrong}=1"])


@pytest.mark.parametrize(
    ("assignment", "allowed"),
    [
        ("optim.lr=-1", "above 0.0"),
        ("optim.kind=sgd", "'adamw', 'muon'"),
        ("train.steps=0", "at least 1"),
        ("train.steps=many", "whole number"),
        ("data.validation=1.5", "below 1.0"),
        ("data.document_mask=7", "true or false"),
        ("run.name=a/b", "matching"),
        ("optim.lr=nan", "number"),
        ("model.dim=1.5", "whole number"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(assignment, allowed):
    with pytest.raises(ConfigError) as error:
        load_config(None, [assignment])
    assert assignment.split("=")[0] in str(error.value)
    assert allowed in str(error.value)


@pytest.mark.parametrize(
    ("sets", "first", "second"),
    [
        (["model.heads=5"], "model.dim", "model.heads"),
        (["model.kv_heads=3"], "model.heads", "model.kv_heads"),
        (["model.moe.experts=4", "model.moe.active=5"], "model.moe.active", "model.moe.experts"),
        (["model.moe.experts=9", "model.moe.groups=2"], "model.moe.experts", "model.moe.groups"),
        (["model.moe.experts=8", "model.moe.first_dense=4"], "model.moe.first_dense", "model.layers"),
    ],
)
def test_an_impossible_pair_is_refused_naming_both_fields(sets, first, second):
    with pytest.raises(ConfigError) as error:
        load_config(None, sets)
    message = str(error.value)
    assert first in message and second in message and len(message.splitlines()) == 1


def test_the_written_config_alone_gives_the_same_config_back():
    config = load_config("tiny-moe", ["run.name=x", 'eval.prompt="a \\"quote\\"\\n\\\\ tab\\t"', "optim.lr=3e-4", "batch.global=48"])
    assert parse_config(tomllib.loads(to_toml(config))) == config
    assert config.batch.global_ == 48 and config.optim.lr == 3e-4


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name):
    assert isinstance(load_config(name), Config)


def test_presets_have_the_sizes_their_names_say():
    from penstock.models import count_parameters, resolve_model

    sizes = {"tiny": (0.9e6, 1.2e6), "gpt2-124m": (120e6, 128e6), "llama-1b": (1.28e9, 1.34e9), "llama-8b": (7.9e9, 8.1e9)}
    for name, (low, high) in sizes.items():
        config = load_config(name)
        assert low <= count_parameters(resolve_model(config.model, config.data.vocab))["total"] <= high, name


def test_files_that_cannot_be_read_are_refused(tmp_path):
    for content, words in ((b"optim = [", "not valid TOML"), (b"\xff\xfe", "not UTF-8")):
        file = tmp_path / "c.toml"
        file.write_bytes(content)
        with pytest.raises(UserError, match=words):
            load_config(file)
    with pytest.raises(UserError, match=r"does not exist \(did you mean 'tiny'\?\)"):
        load_config("tinny")
    with pytest.raises(UserError, match="is a folder"):
        load_config(tmp_path)


def test_sections_and_values_are_not_confused():
    for wrong in ("model=3", "optim.lr.x=3", "optim", "=3"):
        with pytest.raises(ConfigError):
            load_config(None, [wrong])


def test_every_setting_explains_itself():
    for name, field in walk_settings():
        text = explain(name)
        assert text.startswith(name) and field.description in text and "Allowed:" in text and field.description.endswith((".", ")")), name
    assert "optim.beta1" in explain("optim")
    with pytest.raises(ConfigError, match=r"did you mean 'optim\.lr'"):
        explain("optim.lrr")


def test_sets_parse_to_dotted_values():
    assert parse_sets(["train.steps=7", "eval.prompt=hello world", "batch.global=8"]) == {"train.steps": 7, "eval.prompt": "hello world", "batch.global": 8}
    with pytest.raises(ConfigError, match="unknown key"):
        parse_sets(["train.stepz=7"])


def test_a_changed_copy_is_checked_as_a_whole():
    config = load_config(None)
    assert with_values(config, {"model.layers": 7}).model.layers == 7
    with pytest.raises(ConfigError, match=r"model\.heads"):
        with_values(config, {"model.heads": 7})
