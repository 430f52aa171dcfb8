"""Whole runs in parallel layouts: a run goes on in any other layout, ends as one plain process would, and is refused where it cannot be laid out."""

import time

import pytest
from ranks import run_ranks
from small_runs import penstock, small_config, small_sets

from lab.models_to_verify import small_question
from penstock.config import ConfigError, with_values
from penstock.engine import StopRequest, build_core, check_world, start_run
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.step import take_step
from penstock.lab.equivalence import RandomPlan
from penstock.monitor import MetricStore
from penstock.store import Run, save_config

BASE = {
    "precision__compute": "float64", "optim__schedule": "constant", "model__heads": 4, "model__head_dim": 8, "batch__global": 8, "train__steps": 6,
    "eval__every": 2, "snapshot__every": 2, "optim__ema": 0.9,
}  # fmt: skip
EXPERTS = {"model__moe__experts": 6, "model__moe__first_dense": 1, "model__moe__dim": 16, "optim__kind": "muon"}
TWO_D = {"layout.tensor": 4, "layout.tensor_topology": "2d", "layout.tensor_grid": "2x2"}
SQUARE = {"layout.tensor": 4, "layout.tensor_topology": "2.5d", "layout.tensor_grid": "2x2x1"}
PLAIN = {f"layout.{axis}": 1 for axis in ("pipeline", "shard", "context", "tensor", "expert")} | {"layout.tensor_topology": "1d", "layout.tensor_grid": ""}


def losses(folder):
    return [row["loss"] for row in MetricStore(folder / "metrics").read("train")]


def go_on(world, folder):
    return run_rank(Run(folder), world)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "ways"),
    [
        ({}, [(4, {"layout.shard": 2, "layout.tensor": 2}), (4, {"layout.pipeline": 2, "layout.context": 2}), (4, TWO_D)]),
        (EXPERTS, [(4, SQUARE), (4, {"layout.pipeline": 2, "layout.expert": 2, "layout.expert_spare": 1, "layout.expert_every": 1}), (1, {})]),
    ],
    ids=["dense", "experts"],
)  # fmt: skip
def test_a_run_goes_on_in_any_other_layout_and_ends_as_one_process_would(tmp_path, model, ways):
    plain = start_run(small_config(tmp_path, **BASE, **model), "test", "test", 1, tmp_path / "plain", None)
    run = make_run(small_config(tmp_path, **BASE, **model), "test", "test", tmp_path / "moved", None)
    config = run.config()
    for number, (ranks, layout) in enumerate(ways):
        save_config(run, with_values(config, PLAIN | layout | {"train.steps": 2 * (number + 1)}))
        results = run_ranks(go_on, ranks, run.path)
        assert len({result["weights_digest"] for result in results}) == 1
    assert losses(run.path) == pytest.approx(losses(tmp_path / "plain"), rel=1e-9)
    assert [e["val_loss"] for e in results[0]["evals"]] == pytest.approx([e["val_loss"] for e in plain["evals"]], rel=1e-9)
    assert results[0]["sample"] == plain["sample"] and results[0]["parameters"] == plain["parameters"]


@pytest.mark.slow
def test_a_sharded_run_compiles_block_by_block_and_learns_the_same(tmp_path):
    changes = {"layout__shard": 2, "batch__global": 8, "train__steps": 3, "precision__compute": "bfloat16", "model__layers": 1}
    runs = [make_run(small_config(tmp_path, **changes, compile__enabled=way), "test", "test", tmp_path / way, None).path for way in ("off", "on")]
    for run in runs:
        run_ranks(go_on, 2, run)
    events = [row["text"] for row in MetricStore(runs[1] / "metrics").read("event")]
    assert not any("torch.compile is off" in text for text in events)
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=5e-3)


def traffic_and_torchs_count(world, settings):
    config = with_values(small_question(True, optim__kind="muon"), settings)
    core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
    take_step(core, 0)
    world.meter.operations.clear()
    from torch.distributed.tensor.debug import CommDebugMode  # takes seconds, which only this test is to wait for

    with CommDebugMode() as torchs:
        take_step(core, 1)
    return dict(world.meter.operations), {str(op): n for op, n in torchs.get_comm_counts().items()}, world.meter.take()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"layout.shard": 2, "layout.expert": 2, "layout.tensor": 2}, SQUARE, {"layout.context": 2, "layout.tensor": 2}])
def test_the_meter_counts_every_collective_that_torch_counts(settings):
    counted, torchs, traffic = run_ranks(traffic_and_torchs_count, 4, settings)[0]
    kinds = {"all_reduce": "allreduce", "all_gather": "allgather", "reduce_scatter": "reduce_scatter", "broadcast": "broadcast", "all_to_all": "alltoall"}
    for ours, theirs in kinds.items():
        assert counted.get(ours, 0) == sum(n for op, n in torchs.items() if theirs in op), (ours, counted, torchs)
    assert counted and any(key.startswith(("row", "context", "shard")) for key in traffic)


@pytest.mark.parametrize(
    ("ranks", "settings", "sentence"),
    [
        (4, {"layout.shard": 3}, r"layout\.shard = 3, .* does not divide the number of ranks started, 4"),
        (4, {"layout.replicate": 2, "layout.tensor": 4}, r"layout\.replicate = 2, .* is not the number of ranks started, 4"),
        (2, {"layout.context": 2, "model.context": 30}, r"model\.context = 30 is not a multiple of 2 × layout\.context = 4"),
        (32, {"layout.context": 32}, r"layout\.context = 32 needs two pieces a rank of model\.context = 32 tokens"),
        (3, {"layout.tensor": 3}, r"model\.context / layout\.context = 32 tokens over 3 ranks"),
        (4, {"layout.tensor": 4}, r"spreads model\.heads = 2 over 4 ranks"),
        (2, {"layout.tensor": 2, "layout.tensor_topology": "2d", "layout.tensor_grid": "2x1", "model.dim": 33, "model.head_dim": 8}, r"model\.dim = 33 over 2 columns"),
        (4, SQUARE | {"model.heads": 6, "model.kv_heads": 3, "model.head_dim": 8}, r"model\.kv_heads = 3 over 2 columns"),
        (8, {"layout.tensor": 8, "layout.tensor_topology": "2.5d", "layout.tensor_grid": "2x4x1"}, r"layout\.tensor_grid = '2x4x1' must be q×q×depth"),
        (2, {"layout.expert": 2}, r"layout\.expert = 2 spreads experts, and model\.moe\.experts = 0"),
        (4, {"layout.expert": 4, "model.moe.experts": 5}, r"layout\.expert = 4 leaves ranks without any of model\.moe\.experts = 5"),
        (4, {"layout.shard": 2, "layout.expert": 3, "model.moe.experts": 6}, r"layout\.expert = 3 does not fit"),
        (6, {"layout.tensor": 3, "layout.shard": 2, "model.ffn_dim": 2, "model.heads": 3, "model.head_dim": 8, "model.context": 24}, r"model\.ffn_dim = 2, and layout\.shard = 2"),
        (1, {"layout.expert_spare": 1}, r"layout\.expert_spare = 1 .* layout\.expert = 1"),
        (4, {"layout.pipeline": 4}, r"layout\.pipeline = 4 .* makes 4 stages, more than model\.layers = 2"),
        (2, {"layout.pipeline": 2, "pipeline.schedule": "zb-v"}, r"pipeline\.chunks = 2 makes 4 stages, more than model\.layers = 2"),
        (2, {"layout.pipeline": 2, "pipeline.schedule": "dualpipe-v", "model.layers": 4, "batch.micro": 2}, r"dualpipe-v over 2 ranks takes 4 micro-batches or more, not 2"),
        (2, {"layout.pipeline": 2, "pipeline.schedule": "zb-w"}, r"no kind of schedule 'zb-w'.*zb-v"),
        (3, {"layout.shard": 3}, r"batch\.global = 4 sequences do not divide into the 3 parts"),
    ],
)  # fmt: skip
def test_what_cannot_be_laid_out_is_refused_naming_the_settings(tmp_path, ranks, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_world(with_values(small_config(tmp_path), settings), ranks)


FAILING = """
import os
if "RAISED_AT" in os.environ:
    import time
    from penstock.engine import build
    kept, calls = build.Core.loss, []
    def loss(self, batch):
        calls.append(1)
        if len(calls) == 3 and os.environ["RANK"] == "1":
            open(os.environ["RAISED_AT"], "w").write(str(time.time()))
            raise RuntimeError("a planted fault in the middle of a step")
        return kept(self, batch)
    build.Core.loss = loss
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"layout.tensor": 2}, {"layout.shard": 2}, {"exchange.topology": "2x1", "exchange.kind": "topk"}])
def test_a_rank_that_raises_in_a_step_ends_all_with_its_error_within_ten_seconds(tmp_path, layout):
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "sitecustomize.py").write_text(FAILING)
    sets = [*small_sets(tmp_path, survive__enabled="off"), *(a for key, value in layout.items() for a in ("--set", f"{key}={value}"))]
    stamp = tmp_path / "raised"
    done = penstock("train", *sets, "--nproc", 2, "--run-dir", tmp_path / "run", check=False, PYTHONPATH=str(tmp_path / "plant"), RAISED_AT=str(stamp))
    ended = time.time()
    assert done.returncode == 1, done.stderr
    assert "rank 1 failed with RuntimeError: a planted fault in the middle of a step" in done.stderr.splitlines()[-1]
    assert ended - float(stamp.read_text()) < 10
