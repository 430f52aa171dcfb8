"""The check before compiling: a compiler that errs or fails is not used, one that is right is, whole or block by block."""

import pytest
import torch
from small_runs import small_config

from penstock.comm import World
from penstock.engine import compile as compiling
from penstock.models import build_decoder, resolve_model

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path):
    """A config with settled shape, and its decoder."""
    config = small_config(tmp_path, model__layers=2, data__document_mask=True, train__loss_chunk=1000)
    config = config.model_copy(update={"model": resolve_model(config.model, 257)})
    return config, build_decoder(config.model, 1, CPU)


def compiled(model, warnings):
    config, decoder = model
    return compiling.compile_model(decoder, config, torch.float32, config.batch.micro, World(device=CPU), warnings.append)


def wrong_gradient(module_or_function, **options):
    """A compiler whose code gives the right value and, a little, the wrong gradient."""

    def run(*arguments):
        out = module_or_function(*arguments)
        return out + 1e-3 * (out - out.detach()) if isinstance(out, torch.Tensor) else out

    return run


def wrong_value_without_gradient(module_or_function, **options):
    def run(*arguments):
        out = module_or_function(*arguments)
        return out if torch.is_grad_enabled() else out * 1.001

    return run


def failing(module_or_function, **options):
    def run(*arguments):
        raise RuntimeError("no compiler here\nand more lines")

    return run


@pytest.mark.parametrize("whole_layers", [0, 12], ids=["by block", "whole"])
@pytest.mark.parametrize(
    ("compiler", "words"),
    [(wrong_gradient, "gradient of"), (wrong_value_without_gradient, "differs from the eager"), (failing, "RuntimeError: no compiler here")],
)
def test_a_compiler_that_errs_is_found_out_and_not_used(model, monkeypatch, whole_layers, compiler, words):
    monkeypatch.setattr(compiling, "WHOLE_LAYERS", whole_layers)
    monkeypatch.setattr(torch, "compile", compiler)
    warnings = []
    assert compiled(model, warnings) is compiling.sequence_loss
    assert len(warnings) == 1 and words in warnings[0] and "torch.compile is off" in warnings[0]
    assert all(p.grad is None for p in model[1].parameters()) and model[1].training


@pytest.mark.slow
@pytest.mark.parametrize("whole_layers", [0, 12], ids=["by block", "whole"])
def test_what_passes_the_check_computes_the_same(model, monkeypatch, whole_layers):
    monkeypatch.setattr(compiling, "WHOLE_LAYERS", whole_layers)
    config, decoder = model
    tokens, documents = compiling.example_batch(decoder, config.batch.micro, True, CPU)
    arguments = (decoder, tokens, tokens.roll(-1, 1), documents, torch.float32, config.train.loss_chunk)
    results = []
    compiling.sequence_loss(*arguments).backward()
    results.append(compiling.take_gradients(decoder))
    warnings = []
    loss_of = compiled(model, warnings)
    assert not warnings and loss_of is not compiling.sequence_loss
    with torch._dynamo.config.patch(error_on_recompile=True):  # what the check compiled is what runs
        loss_of(*arguments).backward()
    results.append(compiling.take_gradients(decoder))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6)
