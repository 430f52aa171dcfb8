"""What a run does by itself about a fault: it leaves a batch out, goes back and leaves out what it read since; and is reproducible all the same."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from ranks import run_ranks
from small_runs import small_config

from penstock.config import AlertsSection, UserError
from penstock.data import BatchPlan, parse_skip
from penstock.engine import resume_run, trainer
from penstock.engine.build import Core
from penstock.engine.guard import roll_back
from penstock.engine.guard.judge import LEARN, Judge
from penstock.engine.pipeline import Pipeline
from penstock.engine.requests.commands import Command
from penstock.engine.requests.obey import HANDLERS, obey
from penstock.engine.starting import worker
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.step import NonFinite
from penstock.engine.story.replay import replay
from penstock.store import Run, list_snapshots, read_history, run_state

STEPS, MARK = 14, 7
REAL_FETCH, REAL_LOSS, REAL_TRAIN = BatchPlan.fetch, Core.loss, Pipeline.train


def prepared(folder, name, **changes):
    quick = {"train__steps": STEPS, "snapshot__every": 4, "snapshot__keep": 0, "eval__every": 0, "eval__sample_tokens": 0, "metrics__tensorboard": "false"}
    return make_run(small_config(folder, **quick | changes), "test", "test", folder / name, None)


def spoil(bad, times=float("nan")):
    """The loss of every micro-batch with one of the samples `bad` is `times` what it is."""

    def fetch(plan, ids):
        batch = REAL_FETCH(plan, ids)
        return replace(batch, tokens_bt=np.full_like(batch.tokens_bt, MARK)) if set(ids.tolist()) & set(bad) and isinstance(plan, BatchPlan) else batch

    def loss(core, batch):
        return REAL_LOSS(core, batch) * (times if (batch.tokens_bt == MARK).all() else 1.0)

    def piped(pipeline, batches, weight):
        losses = REAL_TRAIN(pipeline, batches, weight)
        return [loss * (times if (batch[0] == MARK).all() else 1.0) for loss, batch in zip(losses, batches)]

    BatchPlan.fetch, Core.loss, Pipeline.train = fetch, loss, piped


def mend():
    BatchPlan.fetch, Core.loss, Pipeline.train = REAL_FETCH, REAL_LOSS, REAL_TRAIN


def train(world, folder, bad=(), orders=(), times=float("nan"), until=0):
    """Train with samples that are bad, and commands after given steps (step, kind, arguments), each once; the summary, or how it failed."""
    left = list(orders)

    def obey_and_ask(parts, asked):
        obey(parts, asked)
        while left and left[0][0] == parts.progress.step:
            _, kind, arguments = left.pop(0)
            if kind == "crash":
                raise RuntimeError("crash")
            try:
                HANDLERS[kind](parts, Command("", kind, arguments, "test", 0.0))
            except UserError as error:
                parts.saving.tell_history("note", f"refused: {error}", parts.progress.step)

    spoil(bad, times)
    trainer.obey = obey_and_ask
    try:
        return run_rank(Run(folder), world, until=until)
    except (NonFinite, RuntimeError) as error:
        return str(error)
    finally:
        mend()
        trainer.obey = obey


def digests(results):
    return {result["weights_digest"] for result in results}


def texts(run):
    return " | ".join(event.text for event in read_history(run.folder).events)


def drop_snapshots_after(run, step):
    for snapshot in list_snapshots(run.folder):
        if snapshot.step > step:
            snapshot.path.unlink()


PIPED = {"layout__pipeline": 2, "pipeline__schedule": "1f1b", "pipeline__drift": 0.0}
LAYOUTS = [
    (1, {"model__moe__experts": 4, "model__moe__dim": 16}),
    (2, {"layout__shard": 2}),
    (2, PIPED | {"pipeline__check": "after", "optim__clip": 50.0}),
]


@pytest.mark.slow
@pytest.mark.parametrize("ranks, layout", LAYOUTS)
def test_a_batch_that_is_not_finite_is_left_out_and_the_run_is_that_which_never_had_it(tmp_path, ranks, layout):
    skips, clean = prepared(tmp_path, "skips", alerts__act="non_finite=skip", **layout), prepared(tmp_path, "clean", data__skip="24-27", **layout)
    skipped = run_ranks(train, ranks, skips.path, [25])
    assert digests(skipped) == digests(run_ranks(train, ranks, clean.path))
    assert skips.config().data.skip == "24-27" and skipped[0]["step"] == STEPS
    [event] = [event for event in read_history(skips.folder).events if event.data.get("left_out")]
    assert event.step == 6 and event.data["samples"] == [24, 27] and "loss nan" in event.text and "left out" in event.text
    if ranks == 1:
        drop_snapshots_after(skips, 4)
        assert resume_run(skips, {}, 1, None)["weights_digest"] == skipped[0]["weights_digest"]
        first, last = list_snapshots(skips.folder)[0], list_snapshots(skips.folder)[-1]
        assert replay(first, last).equal


def test_batches_are_not_left_out_for_ever(tmp_path):
    run = prepared(tmp_path, "run", alerts__act="non_finite=skip", alerts__most=2)
    [said] = run_ranks(train, 1, run.path, range(24, 60))
    assert said.startswith("step 6: loss nan") and run.config().data.skip == "24-31"


def test_without_a_policy_nothing_is_left_out(tmp_path):
    run = prepared(tmp_path, "run")
    [said] = run_ranks(train, 1, run.path, [25])
    assert said.startswith("step 6: loss nan") and run.config().data.skip == ""


@pytest.mark.slow
def test_a_loss_far_above_the_usual_is_left_out_also_after_resuming(tmp_path):
    act = {"alerts__act": "loss_spike=skip, gradient_explosion=skip", "train__steps": 30}
    skips, clean = prepared(tmp_path, "skips", **act), prepared(tmp_path, "clean", data__skip="88-91", **act | {"alerts__act": ""})
    begun = run_ranks(train, 1, skips.path, [], (), 1.0, 20)
    assert begun[0]["step"] == 20
    skipped = run_ranks(train, 1, skips.path, [89], (), 40.0)
    assert digests(skipped) == digests(run_ranks(train, 1, clean.path)) and skips.config().data.skip == "88-91"


def test_a_judge_waits_until_it_knows_what_is_usual_and_ends_in_time():
    section = AlertsSection(act="gradient_explosion=skip, loss_spike=skip")
    judge = Judge(section, [])
    for step in range(LEARN):
        assert judge.objects(1e9, 1e9) is None
        judge.applied(4.0 - 0.01 * step, 1.0)
    assert judge.objects(3.9, 2.0) is None and judge.objects(3.9, 20.0)[0] == "gradient_explosion" and judge.objects(5.0, 1.0)[0] == "loss_spike"
    assert Judge(section, judge.numbers()).objects(3.9, 20.0) == judge.objects(3.9, 20.0)
    assert Judge(AlertsSection(act=""), judge.numbers()).objects(3.9, 20.0) is None


BACK = (10, "roll_back", {"since": 8, "alert": "loss_spike-s8"})


@pytest.mark.slow
@pytest.mark.parametrize("ranks, layout", [(1, {}), (2, {"layout__shard": 2}), (2, PIPED | {"optim__ema": 0.9})])
def test_a_run_goes_back_and_leaves_out_what_it_read_since_the_fault_began(tmp_path, ranks, layout):
    back, clean = prepared(tmp_path, "back", **layout), prepared(tmp_path, "clean", data__skip="28-39", **layout)
    gone = run_ranks(train, ranks, back.path, [], [BACK])
    assert digests(gone) == digests(run_ranks(train, ranks, clean.path)) and gone[0]["step"] == STEPS
    assert "back from step 10 to the snapshot of step 4, for alert loss_spike-s8; samples 28 to 39 are left out" in texts(back)
    if ranks == 1:
        drop_snapshots_after(back, 4)
        assert resume_run(back, {}, 1, None)["weights_digest"] == gone[0]["weights_digest"]
        first, last = list_snapshots(back.folder)[0], list_snapshots(back.folder)[-1]
        assert replay(first, last).equal


@pytest.mark.slow
def test_a_run_that_dies_after_going_back_goes_on_from_there_though_there_are_snapshots_of_later_steps(tmp_path):
    back, clean = prepared(tmp_path, "back"), prepared(tmp_path, "clean", data__skip="28-39")
    assert run_ranks(train, 1, back.path, [], [BACK, (6, "crash", {})]) == ["crash"]
    assert {snapshot.step for snapshot in list_snapshots(back.folder)} == {4, 8}
    assert resume_run(back, {}, 1, None)["weights_digest"] in digests(run_ranks(train, 1, clean.path))


def killed_in(world, folder, stage):
    """Train and go back, and be killed right after one of the three writes of going back, or when the state is about to be read again."""
    module, name = (worker, "begun_again") if stage == "begun_again" else (roll_back, stage)
    real = getattr(module, name)

    def last(*args, **more):
        if stage != "begun_again":
            real(*args, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, last)
    return train(world, folder, [], [BACK])


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """The weights of the run that never goes back, and of the run that never has what is left out."""
    folder = tmp_path_factory.mktemp("ends")
    return [digests(run_ranks(train, 1, prepared(folder, f"run{skip}", data__skip=skip).path)).pop() for skip in ("", "28-39")]


TOLD = {stage: [{"data.skip": ["", "28-39"]}] for stage in ("append_event", "begun_again")}


@pytest.mark.slow
@pytest.mark.parametrize("stage, after", [("tell_snapshot", 0), ("save_config", 1), ("append_event", 1), ("begun_again", 1)])
def test_a_process_that_is_killed_while_it_goes_back_leaves_a_run_from_before_or_after_it(tmp_path, ends, stage, after):
    run = prepared(tmp_path, "run")
    with pytest.raises(AssertionError, match="exit code -9"):
        run_ranks(killed_in, 1, run.path, stage)
    assert resume_run(run, {}, 1, None)["weights_digest"] == ends[after]
    assert run.config().data.skip == ("", "28-39")[after]
    assert [event.data["settings"] for event in read_history(run.folder).events if "rolled_back" in event.data] == TOLD.get(stage, [])
    snapshots = list_snapshots(run.folder)
    assert replay(next(one for one in snapshots if one.step == 4), snapshots[-1]).equal
    assert run_state(run) == "finished" and read_history(run.folder).damage == []


@pytest.mark.slow
def test_a_change_on_the_way_is_taken_up_again_after_going_back(tmp_path):
    back, clean = prepared(tmp_path, "back"), prepared(tmp_path, "clean", data__skip="28-39")
    rate = (6, "change", {"values": {"optim.lr": 1e-4}})
    gone, straight = run_ranks(train, 1, back.path, [], [rate, BACK]), run_ranks(train, 1, clean.path, [], [rate])
    assert digests(gone) == digests(straight) and back.config().optim.lr == 1e-4


@pytest.mark.slow
def test_going_back_to_the_same_place_ends(tmp_path):
    run = prepared(tmp_path, "run", alerts__most=2, train__steps=40)
    [result] = run_ranks(train, 1, run.path, [], [BACK] * 3)
    assert result["state"] == "interrupted" and result["step"] == 11
    assert sum("rolled_back" in event.data for event in read_history(run.folder).events) == 2


@pytest.mark.slow
def test_going_back_is_refused_where_there_is_no_snapshot_before(tmp_path):
    run = prepared(tmp_path, "run")
    [result] = run_ranks(train, 1, run.path, [], [(6, "roll_back", {"since": 3, "alert": "x"})])
    assert result["state"] == "finished" and "refused: there is no snapshot from before step 3" in texts(run)


@pytest.mark.slow
def test_a_nan_rolls_back_where_the_policy_says_so(tmp_path):
    back, clean = prepared(tmp_path, "back", alerts__act="non_finite=roll_back"), prepared(tmp_path, "clean", data__skip="24-27")
    assert digests(run_ranks(train, 1, back.path, [25])) == digests(run_ranks(train, 1, clean.path))
    assert "back from step 6 to the snapshot of step 4" in texts(back)


@pytest.mark.slow
def test_samples_that_were_read_are_not_left_out_afterwards(tmp_path):
    run = prepared(tmp_path, "run")
    run_ranks(train, 1, run.path)
    with pytest.raises(UserError, match=r"data.skip = '3'.*have been read"):
        resume_run(run, {"data.skip": "3", "train.steps": STEPS + 2}, 1, None)
    assert resume_run(run, {"data.skip": "60-63", "train.steps": STEPS + 4}, 1, None)["step"] == STEPS + 4


def test_a_list_of_samples_to_leave_out():
    skip = parse_skip("8-11 3 12-13")
    assert skip.text == "3 8-13" and skip.plus(4, 4).text == "3-4 8-13" and skip.run_before(14) == 6
    left = [n for n in range(40) if n not in (3, *range(8, 14))]
    assert skip.nth(0, np.arange(20)).tolist() == left[:20]
    assert skip.nth(9, np.arange(5)).tolist() == [14, 15, 16, 17, 18]
    with pytest.raises(UserError, match=r"data.skip.*'9-4'"):
        parse_skip("9-4")


def test_what_a_policy_needs_is_asked_for_by_name(tmp_path):
    for changes, words in (
        ({"alerts__act": "loss_spike=roll_back"}, r"alerts\.act.*metrics\.monitor"),
        ({"alerts__act": "straggler=exclude", "metrics__monitor": "true", "survive__enabled": "off"}, r"alerts\.act.*survive\.enabled"),
        ({"alerts__act": "straggler=exclude", "metrics__monitor": "true", "elastic__policy": "throughput"}, r"alerts\.act.*elastic\.policy"),
    ):
        with pytest.raises(UserError, match=words):
            small_config(tmp_path, **changes)


@pytest.mark.slow
def test_a_context_of_another_length_asks_for_an_empty_list(tmp_path):
    run = prepared(tmp_path, "run", data__skip="2-3")
    longer = (5, "change", {"values": {"model.context": 48}})
    both = (6, "change", {"values": {"model.context": 48, "data.skip": ""}})
    [result] = run_ranks(train, 1, run.path, [], [longer, both])
    assert result["step"] == STEPS and run.config().model.context == 48 and run.config().data.skip == ""
    assert "refused: model.context cannot change while data.skip = '2-3'" in texts(run)
