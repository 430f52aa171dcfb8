"""A running run changes between two steps: it grows and keeps its loss, moves and goes on as before, is resumed and replayed; or is left as it was."""

from dataclasses import replace
from itertools import chain

import pytest
from ranks import run_ranks
from small_runs import small_config

from penstock.comm import World
from penstock.config import UserError, walk_settings
from penstock.engine import resume_run, trainer
from penstock.engine.evaluate import validation_loss
from penstock.engine.requests.agenda import live_changes
from penstock.engine.requests.change import change_run
from penstock.engine.requests.changes import PLACES, place_of
from penstock.engine.requests.commands import Command
from penstock.engine.requests.obey import obey
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.story.replay import replay
from penstock.engine.story.samples import samples_of
from penstock.engine.use import open_model
from penstock.monitor import MetricStore
from penstock.store import Event, Run, list_snapshots, read_history, verify_run

STEPS = 12
MOE = {"model__moe__experts": 4, "model__moe__dim": 16, "optim__kind": "muon"}


def prepared(folder, name="run", **changes):
    quick = {"train__steps": STEPS, "snapshot__every": 4, "snapshot__keep": 0, "eval__every": 6, "eval__sample_tokens": 0, "metrics__tensorboard": "false"}
    return make_run(small_config(folder, **quick | changes), "test", "test", folder / name, None)


def train(world, folder, orders=(), until=0):
    """Train with changes after given steps (step, settings); returns the summary, and for each order its refusal or the loss before and after it."""
    left, came = list(orders), []

    def obey_and_change(parts, asked):
        obey(parts, asked)
        while left and left[0][0] == parts.progress.step:
            values = left.pop(0)[1]
            before = validation_loss(parts)
            try:
                change_run(parts, Command("", "change", {"values": values, "accept_loss": "model.layers" not in values}, "test", 0.0))
                came.append((before, validation_loss(parts)))
            except UserError as error:
                came.append(str(error))

    trainer.obey = obey_and_change
    try:
        return run_rank(Run(folder), world, until=until), came
    finally:
        trainer.obey = obey


def rows(folder, name):
    return [row[name] for row in MetricStore(folder / "metrics").read("train")]


def snapshot_at(run, step):
    return next(one for one in list_snapshots(run.folder) if one.step == step)


GROWTH = [(3, {"optim.lr": 5e-4, "optim.clip": 0.5}), (5, {"model.layers": 4}), (7, {"model.heads": 3, "model.kv_heads": 3, "model.ffn_dim": 128}), (9, {"model.context": 48})]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "model", "orders"),
    [
        ({"layout__shard": 2}, {"model__head_dim": 16, "optim__ema": 0.9}, GROWTH),
        ({"layout__pipeline": 2, "pipeline__check": "after", "optim__clip": 100.0}, {"pipeline__schedule": "1f1b"}, [(3, {"model.layers": 4})]),
        ({"layout__expert": 2, "model__tie_embeddings": "true"}, MOE, [(3, {"model.moe.experts": 6}), (6, {"model.tie_embeddings": False})]),
    ],
    ids=["dense, shard 2", "dense, pipeline 2", "experts, expert 2"],
)
def test_a_run_that_grows_keeps_its_loss(tmp_path, layout, model, orders):
    run = prepared(tmp_path, **layout, **model)
    (result, came), (_, other) = run_ranks(train, 2, run.path, orders)
    assert came == other and len(came) == len(orders)
    for (_, values), pair in zip(orders, came):
        if "model.context" not in values:  # scored on other windows
            assert pair[1] == pytest.approx(pair[0], abs=1e-5), (values, came)
    assert result["step"] == STEPS and rows(run.path, "step") == list(range(1, STEPS + 1))
    assert [event.step for event in read_history(run.path).events if event.kind == "change"] == [step for step, _ in orders]
    assert open_model(run, "cpu").config.model == run.config().model and not verify_run(run.folder).damage


@pytest.mark.slow
def test_a_rate_and_what_the_loop_reads_change_without_building_anything_anew(tmp_path):
    run = prepared(tmp_path, optim__schedule="constant", optim__warmup=0)
    orders = [(4, {"optim.lr": 5e-4}), (5, {"train.steps": 9, "eval.every": 2})]
    result, came = train(World(), run.path, orders)
    assert [before for before, _ in came] == [after for _, after in came]
    assert rows(run.path, "lr") == [1e-3] * 4 + [5e-4] * 5 and result["step"] == 9
    assert [found["step"] for found in result["evals"]] == [6, 8, 9]
    assert (run.config().optim.lr, run.config().train.steps) == (5e-4, 9)
    stopped = prepared(tmp_path, "stopped", optim__schedule="constant", optim__warmup=0)
    train(World(), stopped.path, until=4)
    assert resume_run(stopped, {"optim.lr": 5e-4, "train.steps": 9}, 1, None)["weights_digest"] == result["weights_digest"]


REFUSED = [
    ({"optim.lr": -1.0}, "optim.lr = -1"), ({"layout.tensor": 3}, "layout.tensor = 3"), ({"run.seed": 3}, "run.seed"), ({"data.path": "x"}, "data.path"),
    ({"train.steps": 2}, "train.steps = 2"), ({"model.layers": 50_000_000}, "model.layers = 50000000"), ({"model.dim": 64}, "model.dim"),
    ({"model.layers": 1}, "--yes"), ({"precision.compute": "float64"}, "precision.compute"), ({"optim.lr": 1e-3}, "nothing would change"),
    ({"model.context": 10_000_000}, "model.context"), ({"model.context": 5000}, "raise data.validation"), ({"exchange.kind": "topk"}, "exchange.kind"),
]  # fmt: skip


@pytest.mark.slow
def test_layouts_change_live_and_what_is_refused_leaves_the_run_as_it_was(tmp_path):
    exact = {"precision__compute": "float64", "layout__shard": 2}
    plain, moved, asked = (prepared(tmp_path, name, **exact) for name in ("plain", "moved", "asked"))
    undisturbed = run_ranks(train, 2, plain.path)[0][0]
    ways = [(3, {"layout.shard": 1}), (5, {"layout.tensor": 2, "batch.micro": 1}), (7, {"layout.tensor": 1, "layout.pipeline": 2}), (9, {"layout.pipeline": 1})]
    result, came = run_ranks(train, 2, moved.path, ways)[0]
    assert all(pair[1] == pytest.approx(pair[0], rel=1e-12) for pair in came), came
    assert rows(moved.path, "loss") == pytest.approx(rows(plain.path, "loss"), rel=1e-11)
    assert [one["val_loss"] for one in result["evals"]] == pytest.approx([one["val_loss"] for one in undisturbed["evals"]], rel=1e-11)
    result, came = run_ranks(train, 2, asked.path, [(5, values) for values, _ in REFUSED])[0]
    for (values, words), said in zip(REFUSED, came, strict=True):
        assert isinstance(said, str) and words in said, (values, said)
    assert result["weights_digest"] == undisturbed["weights_digest"]
    assert asked.config() == plain.config()


@pytest.mark.slow
def test_a_run_that_died_after_a_change_takes_it_up_again_at_its_step(tmp_path):
    whole, torn, other = (prepared(tmp_path, name) for name in ("whole", "torn", "other"))
    orders = [(6, {"model.layers": 3, "batch.global": 6}), (7, {"optim.lr": 5e-4})]
    result, _ = train(World(), whole.path, orders)
    for run in (torn, other):
        train(World(), run.path, orders, until=8)
        snapshot_at(run, 8).path.unlink()  # as if it had died before that
        assert open_model(run, "cpu").progress.step == 4 and run.config().model.layers == 3
    again, _ = train(World(), torn.path)
    assert again["weights_digest"] == result["weights_digest"] and again["tokens"] == result["tokens"]
    told = replay(snapshot_at(torn, 4), snapshot_at(torn, STEPS))
    assert told.equal, told.text()
    assert "after step 6 batch.global, model.layers changed; after step 7 optim.lr changed" in told.text().replace("model.layers, batch.global", "batch.global, model.layers")
    assert torn.config() == whole.config()
    instead = resume_run(other, {"optim.lr": 2e-3}, 1, None)
    assert instead["weights_digest"] != result["weights_digest"] and other.config().optim.lr == 2e-3 and other.config().model.layers == 3


@pytest.mark.slow
def test_samples_go_on_where_the_run_was(tmp_path):
    run, drawn = prepared(tmp_path), []
    orders = [(3, {"batch.global": 6}), (5, {"batch.global": 2, "batch.micro": 1}), (9, {"model.context": 16})]
    real = trainer.next_result

    def next_result(parts, step, settle):
        drawn.append(parts.plan.sample_ids(step).tolist())
        return real(parts, step, settle)

    trainer.next_result = next_result
    try:
        train(World(), run.path, orders)
    finally:
        trainer.next_result = real
    assert [len(ids) for ids in drawn] == [4] * 3 + [6] * 2 + [2] * 7
    assert list(chain(*drawn[:9])) == list(range(32)), "none is left out, and none drawn twice"
    first = (19985 - 16) // 16
    assert list(chain(*drawn[9:])) == list(range(first, first + 6)), "other windows begin an epoch"
    assert samples_of(snapshot_at(run, STEPS), 12).steps[12][0].sample == first + 4
    with pytest.raises(UserError, match="changed after step 9"):
        samples_of(snapshot_at(run, STEPS), 9)


def test_every_setting_has_a_place_and_every_refusal_a_reason():
    names = [name for name, _ in walk_settings()]
    assert all((place_of(name)[1] != "") == (place_of(name)[0] == "fixed") for name in names)
    used = {key for key in PLACES for name in names if name == key or (key.endswith(".") and name.startswith(key))}
    assert used == PLACES.keys(), "no key of the table is of a setting that does not exist"


def test_what_a_resume_sets_is_not_taken_up_again():
    def event(seq, step, settings, **data):
        return Event(seq, "", "change", step, "", {"settings": settings} | data, "")

    live = event(1, 6, {"optim.lr": [1, 2], "model.layers": [2, 3]}, command="change")
    assert live_changes([live, replace(live, seq=2)])[0].values == {"optim.lr": 2, "model.layers": 3}
    assert live_changes([live, event(2, 4, {"optim.lr": [1, 5]})])[0].values == {"model.layers": 3}
    assert live_changes([live, event(2, 8, {"optim.lr": [2, 5]})])[0].values == {"optim.lr": 2, "model.layers": 3}
    assert live_changes([live, event(2, 4, {"optim.lr": [1, 1], "model.layers": [2, 2]})]) == []
