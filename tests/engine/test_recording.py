"""Rows of whole runs: hundreds of named metrics in any layout, also of the step that fails; the run is the same with them, without, or with a disk that hangs."""

import json
import math
import threading
import time

import numpy as np
import pytest
from ranks import run_ranks
from small_runs import small_config

from penstock.config import with_values
from penstock.engine import Core, resume_run, start_run, trainer
from penstock.engine.record.known import way_of
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.step import NonFinite
from penstock.monitor.bus import aside
from penstock.monitor.series import CATALOGUE
from penstock.monitor.series.kinds import UNKNOWN, Kinds, read_kinds
from penstock.monitor.series.rows import RowLog, rank_folders
from penstock.monitor.series.table import ABSENT_BITS
from penstock.monitor.series.tail import RowTail
from penstock.store import Run

FOUR = {"model__layers": 4, "model__heads": 4, "model__head_dim": 8, "train__steps": 3, "metrics__probe_every": 2, "eval__every": 0, "eval__sample_tokens": 0}


def parts_of(run, rank=0):
    """All that a rank has written, piece by piece."""
    tail = RowTail(run / "metrics" / f"rank-{rank:05d}")
    return [part for parts in iter(tail.read, []) for part in parts]


def rows(run, rank=0):
    """What a rank measured, by step and metric, of all its generations; a later one's rows count."""
    found = {}
    for part in parts_of(run, rank):
        for step, values in zip(part.steps.tolist(), np.ascontiguousarray(part.values_rn)):
            measured = values.view(np.uint64) != ABSENT_BITS
            found[step] = {name: value for name, value, there in zip(part.about.names, values.tolist(), measured) if there}
    return found


def go_on(world, folder):
    return run_rank(Run(folder), world)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, {}),
        (2, {"layout__shard": 2}),
        (2, {"layout__tensor": 2}),
        (2, {"layout__pipeline": 2}),
        (2, {"layout__expert": 2, "model__moe__experts": 4, "model__moe__dim": 16, "model__moe__first_dense": 1}),
    ],
)
def test_every_layout_records_hundreds_of_metrics_that_the_catalogue_knows(tmp_path, ranks, settings):
    run = make_run(small_config(tmp_path, **FOUR | settings), "test", "test", tmp_path / "run", None)
    digest = run_ranks(go_on, ranks, run.path)[0]["weights_digest"]
    assert sorted(rank_folders(run.path / "metrics")) == list(range(ranks))
    by_rank = [rows(run.path, rank) for rank in range(ranks)]
    assert all(sorted(row) == [1, 2, 3] for row in by_rank)
    measured = {name for row in by_rank for name in row[3]}
    assert len(measured) >= 300, len(measured)
    kinds = Kinds(CATALOGUE)
    assert not [name for row in by_rank for step in row.values() for name in step if kinds.of(name) is UNKNOWN]
    assert read_kinds(run.path / "metrics").all == CATALOGUE
    for row in (step for rank in by_rank for step in rank.values()):
        assert 0 <= row["time/own"] <= row["time/step"] and row["data/tokens"] == 128 and row["memory/resident"] > 1e7 and all(map(math.isfinite, row.values()))
    _every_rank_told_what_it_did(run.path, ranks, piped="layout__pipeline" in settings)
    experts = {name for name in measured if ".expert." in name}
    assert experts == ({f"expert_load/layer.{layer:02d}.expert.{n:03d}" for layer in (1, 2, 3) for n in range(4)} if "layout__expert" in settings else set())
    without = make_run(small_config(tmp_path, **FOUR | settings, metrics__rows=False), "test", "test", tmp_path / "without", None)
    assert run_ranks(go_on, ranks, without.path)[0]["weights_digest"] == digest
    assert not rank_folders(without.path / "metrics")


def _every_rank_told_what_it_did(run, ranks, piped):
    """Phases of steps 1 and 2, and in a pipeline all actions of the plan, within the step."""
    plan = json.loads((run / "metrics" / "pipeline.json").read_text()) if piped else None
    for rank in range(ranks):
        shots = json.loads((run / "metrics" / f"rank-{rank:05d}" / "steps.json").read_text())["steps"]
        assert [shot["step"] for shot in shots] == [1, 2]
        for shot in shots:
            names = [name for name, _, _ in shot["spans"]]
            assert {"forward_backward", "optimizer"} <= set(names) and shot["left_out"] == 0
            assert all(shot["start"] - 2e-3 <= start and start + seconds <= shot["end"] + 2e-3 for name, start, seconds in shot["spans"])
            actions = [name.removeprefix("pipeline.") for name in names if name.startswith("pipeline.") and not name.endswith(("activations", "export"))]
            assert actions == ([name for name, _, _ in plan["spans"][rank]] if plan else [])
    assert plan is None or (plan["rank_of"] and 0 <= plan["bubble"] < 1)


@pytest.mark.slow
def test_the_step_that_fails_has_its_row_which_names_the_micro_batch(tmp_path, monkeypatch):
    loss, calls = Core.loss, []

    def poisoned(core, batch):
        calls.append(1)
        return loss(core, batch) * (math.nan if len(calls) == 6 else 1.0)

    monkeypatch.setattr(Core, "loss", poisoned)
    with pytest.raises(NonFinite, match="micro-batch 1 of rank 0"):
        start_run(small_config(tmp_path, **FOUR | {"train__steps": 9}), "test", "test", 1, tmp_path / "run", None)
    found = rows(tmp_path / "run")
    assert sorted(found) == [1, 2, 3] and not any("fault/non_finite" in found[step] for step in (1, 2))
    last = found[3]
    assert last["fault/non_finite"] == 1 and math.isnan(last["loss/total"]) and math.isnan(last["grad_norm/total"])
    assert math.isfinite(last["loss/micro.00"]) and math.isnan(last["loss/micro.01"]) and math.isnan(last["grad_norm/layer.03.ffn.up"])
    assert all(math.isfinite(last[f"activation_norm/layer.{layer:02d}"]) for layer in range(4))
    assert last["data/sample.01"] - last["data/sample.00"] == last["data/micro_batch"] == 2


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_snapshot_records_in_a_new_generation_what_came_after_it(tmp_path):
    start_run(small_config(tmp_path, **FOUR | {"train__steps": 5, "snapshot__every": 2}), "test", "test", 1, tmp_path / "run", None)
    before = rows(tmp_path / "run")
    resume_run(Run(tmp_path / "run"), {"train.steps": 7}, 1, None)
    generations = sorted({(part.about.generation, part.about.after) for part in parts_of(tmp_path / "run")})
    assert [after for _, after in generations] == [0, 5] and generations[0][0] < generations[1][0]
    after = rows(tmp_path / "run")
    assert sorted(after) == list(range(1, 8)) and {step: after[step]["loss/total"] for step in before} == {step: row["loss/total"] for step, row in before.items()}


@pytest.mark.slow
def test_a_disk_that_hangs_holds_up_no_training(tmp_path, monkeypatch):
    plain = start_run(small_config(tmp_path, **FOUR), "test", "test", 1, tmp_path / "plain", None)
    hangs = threading.Event()
    monkeypatch.setattr(RowLog, "append", lambda *_: hangs.wait(60))
    monkeypatch.setattr(aside, "END_S", 0.1)
    monkeypatch.setattr(aside, "MOST_WAITING", 1)
    held_up = start_run(small_config(tmp_path, **FOUR), "test", "test", 1, tmp_path / "run", None)
    hangs.set()
    assert held_up["weights_digest"] == plain["weights_digest"] and held_up["wall_s"] < 30


def compiled(tmp_path, name, ranks, **changes):
    config = with_values(small_config(tmp_path, **FOUR | {"model__layers": 1, "compile__enabled": "on"}), {key.replace("__", "."): value for key, value in changes.items()})
    run = make_run(config, "test", "test", tmp_path / name, None)
    return run.path, run_ranks(go_on, ranks, run.path, timeout_s=300)[0]["weights_digest"]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "settings"), [(1, {}), (2, {"layout__shard": 2})])
def test_a_compiled_model_trains_to_the_same_bits_while_it_is_looked_at(tmp_path, ranks, settings):
    run, digest = compiled(tmp_path, "looked", ranks, **settings)
    assert digest == compiled(tmp_path, "alone", ranks, **settings, metrics__rows=False)[1]
    first = rows(run)[1]
    assert math.isfinite(first["activation_norm/layer.00"]) and first["update_norm/total"] > 0
    assert ("attention_entropy/layer.00" in first) == (ranks == 1)


def evaluates_slowly(world, folder):
    """Two ranks of which the first takes its time in evaluations, for which the other waits."""
    real = trainer.validation_loss

    def slow(parts):
        if world.is_lead:
            time.sleep(0.3)
        return real(parts)

    trainer.validation_loss = slow
    try:
        return run_rank(Run(folder), world)
    finally:
        trainer.validation_loss = real


@pytest.mark.slow
def test_what_a_rank_waited_for_an_evaluation_is_not_taken_from_its_own_time(tmp_path):
    run = make_run(small_config(tmp_path, **FOUR | {"train__steps": 7, "eval__every": 2}), "test", "test", tmp_path / "run", None)
    run_ranks(evaluates_slowly, 2, run.path)
    own = {step: row["time/own"] for step, row in rows(run.path, 1).items()}
    assert len(own) == 7 and all(seconds > 0 for seconds in own.values()), own
    waits = rows(run.path, 1)[3]
    assert waits["wait/total"] <= waits["time/step"]


def test_how_a_step_is_computed_has_a_number(tmp_path):
    config = small_config(tmp_path)
    assert way_of(config) == way_of(with_values(config, {"optim.lr": 0.5}))
    assert way_of(config) != way_of(with_values(config, {"precision.compute": "float64"})) != way_of(with_values(config, {"layout.shard": 2}))
