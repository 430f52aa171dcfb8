"""Whole runs in this process: what they leave behind, and that the result does not depend on how the batch is cut."""

import json
import math
import tomllib

import pytest
import torch
from small_runs import small_config

from penstock.config import UserError, load_config
from penstock.engine import open_model, resume_run, speak, start_run
from penstock.engine.build import Parts
from penstock.engine.state import weights_digest
from penstock.monitor import MetricStore
from penstock.parallel import laid_whole
from penstock.store import Run, find_run, list_snapshots


def train(tmp_path, name, **changes):
    return start_run(small_config(tmp_path, **changes), "test", "test", 1, tmp_path / name, None)


def losses(result):
    return [row["loss"] for row in MetricStore(find_run(result["run"]).path / "metrics").read("train")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One small run and its folder, for tests that only look."""
    folder = tmp_path_factory.mktemp("plain")
    return train(folder, "plain"), folder


@pytest.mark.slow
def test_a_run_leaves_summary_metrics_snapshot_and_report(plain):
    result, _ = plain
    run = find_run(result["run"])
    assert {"run", "step", "tokens", "parameters", "val_loss", "evals", "tokens_per_s", "mfu", "wall_s", "weights_digest", "recoveries"} <= result.keys()
    assert "exchange" not in result  # one rank has nobody to send to
    assert result["step"] == 6 and result["tokens"] == 6 * 4 * 32 and result["state"] == "finished"
    assert [e["step"] for e in result["evals"]] == [3, 6] and result["val_loss"] == result["evals"][-1]["val_loss"]
    assert run.read("summary.json") == json.loads(json.dumps(result))
    assert (run.path / "report.html").stat().st_size > 2000 and list((run.path / "events").iterdir())
    assert [s.step for s in list_snapshots(run.folder)] == [4, 6]
    rows = MetricStore(run.path / "metrics").read("train")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["grad_norm"] > 0 and row["tokens_per_s"] > 0 and row["memory_bytes"] > 0 for row in rows)


@pytest.mark.slow
def test_the_first_loss_is_that_of_guessing_and_training_lowers_it(tmp_path):
    result = train(tmp_path, "long", train__steps=60, optim__lr=3e-3, optim__warmup=5, eval__every=0, snapshot__every=0)
    first, *_, last = losses(result)
    assert abs(first - math.log(257)) < 0.1
    assert last < first - 2.0


@pytest.mark.slow
def test_the_resolved_config_alone_reproduces_the_run(plain, tmp_path):
    result, _ = plain
    config = load_config(find_run(result["run"]).path / "config.toml")
    again = start_run(config, "again", "test", 1, tmp_path / "again", None)
    assert again["weights_digest"] == result["weights_digest"] and again["val_loss"] == result["val_loss"]
    settled = tomllib.loads((find_run(again["run"]).path / "config.toml").read_text())
    still_open = {f"{section}.{key}" for section, values in settled.items() for key, value in values.items() if value == "auto"}
    assert settled["precision"]["compute"] == "float32"
    assert still_open == {"run.device", "pipeline.schedule", "exchange.topology", "exchange.density", "survive.enabled"}  # what says where to run, or follows from a neighbour


@pytest.mark.slow
def test_another_seed_gives_another_run(plain, tmp_path):
    assert train(tmp_path, "other", run__seed=7)["weights_digest"] != plain[0]["weights_digest"]


@pytest.mark.slow
def test_a_micro_batch_that_does_not_divide_the_share_is_made_smaller(tmp_path):
    common = {"train__steps": 3, "eval__every": 0, "batch__global": 6}
    assert losses(train(tmp_path, "four", batch__micro=4, **common)) == losses(train(tmp_path, "three", batch__micro=3, **common))
    assert losses(train(tmp_path, "many", batch__micro=99, **common)) == losses(train(tmp_path, "six", batch__micro=6, **common))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [False, True])
def test_the_cut_into_micro_batches_does_not_change_the_loss(tmp_path, mask):
    """With masked targets the micro-batches hold different numbers of tokens; the mean is over the global batch all the same."""
    common = {"data__document_mask": mask, "train__steps": 4, "eval__every": 0}
    whole = losses(train(tmp_path, "whole", batch__micro=4, **common))
    pieces = losses(train(tmp_path, "pieces", batch__micro=1, **common))
    assert pieces == pytest.approx(whole, rel=2e-5)


@pytest.mark.slow
def test_resuming_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = train(tmp_path, "whole", optim__ema=0.9)
    half = train(tmp_path, "half", optim__ema=0.9, train__steps=6)
    run = find_run(half["run"])
    for snapshot in list_snapshots(run.folder)[1:]:
        snapshot.path.unlink()
    resumed = resume_run(run, {}, 1, None)
    assert resumed["weights_digest"] == whole["weights_digest"]
    assert resumed["evals"] == whole["evals"] and resumed["tokens"] == whole["tokens"]
    assert losses(resumed) == losses(whole), "the metrics hold each step once"


@pytest.mark.slow
def test_more_steps_than_planned_can_be_asked_for(tmp_path):
    result = train(tmp_path, "r")
    longer = resume_run(find_run(result["run"]), {"train.steps": 9}, 1, None)
    assert longer["step"] == 9 and len(losses(longer)) == 9
    assert find_run(result["run"]).config().train.steps == 9


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"model.layers": 3}, {"model.dim": 64}, {"optim.kind": "muon"}, {"run.seed": 5}, {"data.validation": 0.2}, {"batch.global": 8}])
def test_resuming_with_another_model_data_or_optimizer_is_refused_by_name(plain, change):
    with pytest.raises(UserError, match=next(iter(change)).replace(".", r"\.") + ".*cannot become"):
        resume_run(find_run(plain[0]["run"]), change, 1, None)


@pytest.mark.slow
def test_resuming_on_a_changed_corpus_is_refused(tmp_path):
    result = train(tmp_path, "r")
    (tmp_path / "corpus" / "003.txt").write_text("something else entirely, and longer than it was\n" * 30)
    with pytest.raises(UserError, match=r"data\.path.*has changed since the run"):
        resume_run(find_run(result["run"]), {"train.steps": 9}, 1, None)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_before_the_bad_update(tmp_path, monkeypatch):
    whole = train(tmp_path, "whole", train__steps=3, eval__every=0)
    real, calls = Parts.loss, []

    def loss(self, batch):
        calls.append(batch)
        value = real(self, batch)
        return value * float("nan") if self.progress.step == 3 and len(calls) % 2 == 0 else value

    monkeypatch.setattr(Parts, "loss", loss)
    with pytest.raises(UserError, match=r"step 3: loss nan.*micro-batch 1 of rank 0: .*\.txt") as error:
        train(tmp_path, "bad", eval__every=0)
    run = Run(tmp_path / "bad")
    assert [s.step for s in list_snapshots(run.folder)][-1] == 3, "the good state is saved"
    assert run.read("summary.json")["weights_digest"] == whole["weights_digest"] or run.read("summary.json")["step"] == 3
    assert "nan" in str(error.value) and run.read("summary.json")["state"] == "failed"
    monkeypatch.undo()
    assert resume_run(run, {}, 1, None)["step"] == 6


def test_a_gradient_that_overflows_is_named_too(tmp_path, monkeypatch):
    real = Parts.loss
    monkeypatch.setattr(Parts, "loss", lambda self, batch: _Exploding.apply(real(self, batch)))
    with pytest.raises(UserError, match=r"step 0: .*gradient norm (inf|nan).*backward pass overflowed"):
        train(tmp_path, "bad")


class _Exploding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"optim__kind": "muon"}, {"model__moe__experts": 4, "model__moe__first_dense": 1}, {"precision__compute": "bfloat16"},
                                     {"model__sliding_window": 8, "data__document_mask": True}, {"model__tie_embeddings": True, "model__qk_norm": True}])  # fmt: skip
def test_switches_train_and_resume_bit_for_bit(tmp_path, changes):
    whole = train(tmp_path, "whole", **changes)
    half = train(tmp_path, "half", snapshot__every=3, snapshot__keep=0, **changes)
    run = find_run(half["run"])
    list_snapshots(run.folder)[-1].path.unlink()
    resumed = resume_run(run, {}, 1, None)
    assert resumed["weights_digest"] == whole["weights_digest"]
    assert whole["evals"][-1]["val_loss"] < math.log(257) + 0.1


@pytest.mark.slow
def test_averaged_weights_are_what_evaluation_and_samples_use(tmp_path):
    result = train(tmp_path, "ema", optim__ema=0.99, optim__lr=1e-2)
    live = train(tmp_path, "live", optim__lr=1e-2)
    assert result["weights_digest"] == live["weights_digest"], "averaging does not touch training"
    assert result["val_loss"] != live["val_loss"]
    averaged = open_model(find_run(result["run"])).decoder
    assert weights_digest(laid_whole(averaged)) != result["weights_digest"], "the model one uses is the averaged one"


def test_a_sample_is_a_function_of_the_seed(plain):
    model = open_model(find_run(plain[0]["run"]))
    one, same, other = (speak(model, "the ", 40, 1.0, 0, seed) for seed in (1, 1, 2))
    assert one == same != other
    assert speak(model, "the ", 20, 0.0, 0, 1) == speak(model, "the ", 20, 0.0, 0, 2)
