"""The same runs on a GPU; skipped where there is none."""

import pytest
import torch
from small_runs import small_config

from penstock.engine import resume_run, start_run
from penstock.models import build_decoder, resolve_model
from penstock.store import find_run, list_snapshots

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def train(tmp_path, name, **changes):
    changes = {"run__device": "cuda", "model__dim": 64, "model__context": 128} | changes
    return start_run(small_config(tmp_path, **changes), "test", "test", 1, tmp_path / name, None)


def test_a_gpu_learns_what_the_cpu_does(tmp_path):
    gpu = train(tmp_path, "gpu", precision__compute="float32")
    cpu = train(tmp_path, "cpu", run__device="cpu")
    assert gpu["val_loss"] == pytest.approx(cpu["val_loss"], rel=1e-3)


@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("changes", [{}, {"model__moe__experts": 4, "model__moe__dim": 64}, {"data__document_mask": True, "model__sliding_window": 32}])
def test_bfloat16_trains_and_resumes(tmp_path, compiled, changes):
    whole = train(tmp_path, "whole", compile__enabled=compiled, precision__compute="bfloat16", snapshot__keep=0, **changes)
    wide = train(tmp_path, "wide", precision__compute="float32", **changes)
    assert whole["val_loss"] == pytest.approx(wide["val_loss"], rel=2e-2)
    run = find_run(whole["run"])
    list_snapshots(run.folder)[-1].path.rename(tmp_path / "aside")
    assert resume_run(run, {}, 1, None)["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-3)


def test_flex_attention_agrees_with_a_dense_mask(tmp_path):
    config = small_config(tmp_path, model__dim=64, model__context=256, model__sliding_window=50).model
    decoder = build_decoder(resolve_model(config, 300), 0, "cpu")
    tokens = torch.randint(0, 300, (2, 256))
    documents = torch.arange(256).div(90, rounding_mode="floor").expand(2, -1).contiguous()
    with torch.no_grad():
        dense = decoder(tokens, documents_bt=documents)
        flex = decoder.to("cuda")(tokens.cuda(), documents_bt=documents.cuda()).cpu()
    torch.testing.assert_close(flex, dense, atol=2e-4, rtol=2e-4)
