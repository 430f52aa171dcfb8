"""Work balancing: whatever the shares the update is the same, a slow rank is found in every layout, and a run names it, moves its work and goes on so."""

import itertools
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from small_runs import small_config

from lab.models_to_verify import small_question
from lab.test_equivalence import SWITCHES
from penstock.comm import ByteMeter, World
from penstock.config import ConfigError, load_config, with_values
from penstock.engine import StopRequest, build_core, resume_run, start_run
from penstock.engine.build import Core
from penstock.engine.starting.start import make_run
from penstock.engine.starting.worker import run_rank
from penstock.engine.step import NonFinite, take_step
from penstock.engine.tune.balance import DataBalancer
from penstock.engine.tune.own_time import Own, OwnTime
from penstock.lab import Case, check
from penstock.lab.equivalence import RandomPlan
from penstock.monitor import MetricStore
from penstock.parallel import Layout
from penstock.store import Run, list_snapshots, read_numbers, save_config

STEPS, NAP = 3, 0.05


def built(world, config):
    return build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)


def with_random_shares(world, config, cases):
    """How each case compares with one plain process, under shares that are drawn for every step, and which those were."""
    plain, answers = {}, []
    for case in cases:
        used, real = [], DataBalancer.cut
        DataBalancer.cut = lambda self, ids, rank, shares, real=real, used=used: (used.append(shares), real(self, ids, rank, shares))[1]
        try:
            answers.append((check(world, config, Case(str(case), world.size, case | {"balance.data": "measured"}), plain), used))
        finally:
            DataBalancer.cut = real
    return answers


PIPED = {"layout.pipeline": 2, "model.layers": 5, "batch.micro": 3}
CASES = {
    (2, False): [
        {"layout.replicate": 2, "batch.micro": 3},
        {"layout.replicate": 2, "batch.micro": 24, "data.document_mask": True},
        *({"layout.shard": 2, "layout.zero": zero, "batch.micro": 4, "optim.clip": 0.1} for zero in (1, 2, 3)),
    ],
    (2, True): [{"layout.expert": 2, "batch.micro": 5}, {"layout.shard": 2, "layout.expert": 2, "batch.micro": 4, "data.document_mask": True}],
    (3, False): [{"layout.replicate": 3, "batch.micro": 4, "model.tie_embeddings": True}],
    (4, False): [
        {"layout.replicate": 4, "batch.micro": 2, "optim.kind": "muon"},
        {"layout.replicate": 4, "batch.micro": 3, "exchange.topology": "2x2"},
        {"layout.replicate": 2, "layout.shard": 2, "batch.micro": 3},
        {"layout.replicate": 2, "layout.tensor": 2, "batch.micro": 5, "data.document_mask": True},
        {"layout.shard": 2, "layout.tensor": 2, "batch.micro": 5},
        {"layout.replicate": 2, "layout.context": 2, "batch.micro": 4, "data.document_mask": True},
        *(PIPED | {"pipeline.schedule": kind} for kind in ("auto", "1f1b")),
        PIPED | {"layout.shard": 2, "pipeline.schedule": "zb-h1", "optim.ema": 0.9},
    ],
    (4, True): [
        {"layout.shard": 4, "layout.expert": 2, "batch.micro": 3},
        {"layout.expert": 2, "layout.expert_spare": 1, "layout.expert_every": 2, "layout.tensor": 2, "batch.micro": 3},
        PIPED | {"layout.expert": 2, "pipeline.schedule": "1f1b"},
    ],
    (8, False): [{"layout.tensor": 4, "layout.tensor_topology": "2.5d", "layout.tensor_grid": "2x2x1", "batch.micro": 2}],
}  # fmt: skip


def check_shares(ranks, experts, cases, **changes):
    config = small_question(experts, train__steps=STEPS, run__seed=random.randrange(1 << 30), **changes)
    for result, used in run_ranks(with_random_shares, ranks, config, cases, timeout_s=300)[0]:
        assert result.verdict == "equal", (result, config.run.seed, used)
        assert any(len(set(shares)) > 1 for shares in used), (result.name, used)


@pytest.mark.slow
def test_uneven_shares_give_the_update_of_one_process():
    check_shares(2, False, CASES[2, False][:3])


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "experts"), CASES)
def test_uneven_shares_give_the_update_of_one_process_in_every_layout(ranks, experts):
    check_shares(ranks, experts, CASES[ranks, experts])


@pytest.mark.slow
def test_uneven_shares_go_with_every_switch():
    layouts = [{"layout.replicate": 2, "batch.micro": 4}, {"layout.shard": 2, "batch.micro": 5}]
    check_shares(2, True, [layouts[i % 2] | switch for i, switch in enumerate(SWITCHES.values())])


def own_times(world, config, slow):
    """Each replica's own seconds, the least of some steps, where a sequence takes rank `slow` `NAP` longer in all its layers; and whose rank that is."""
    core = built(world, config)
    block, layers = type(next(iter(core.decoder.blocks.values()))), len(core.decoder.blocks)
    real = block.forward

    def forward(self, x_btd, *args):
        time.sleep(NAP * x_btd.shape[0] / layers * (world.rank == slow))
        return real(self, x_btd, *args)

    block.forward, found = forward, []
    try:
        for step in range(4):
            take_step(core, step)
            marks = core.pipeline.marks if core.pipeline else []
            own = core.balancer._own.read([(start, end) for _, start, end in marks])
            found.append(core.balancer._seconds(core.balancer._exchange(own)))
    finally:
        block.forward = real
    return [min(seconds) for seconds in zip(*found)], core.balancer.replica_of[slow]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "experts", "layout"),
    [
        (2, False, {"layout.replicate": 2}),
        (2, False, {"layout.shard": 2, "layout.zero": 3}),
        (2, True, {"layout.expert": 2}),
        (4, False, {"layout.shard": 2, "layout.tensor": 2}),
        (4, False, {"layout.replicate": 2, "layout.context": 2}),
        (4, False, PIPED | {"layout.shard": 2, "pipeline.schedule": "1f1b"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_slow_rank_is_told_from_those_that_wait_for_it(ranks, experts, layout):
    """All wait for the rank that sleeps, many of them inside the passes, whose time is as long for them; their own is not."""
    config = with_values(small_question(experts, batch__micro=4, balance__data="measured"), layout)
    for seconds, where in run_ranks(own_times, ranks, config, ranks - 1):
        slept = 12 * NAP
        others = [took for replica, took in enumerate(seconds) if replica != where]
        assert seconds[where] > slept and 2 * max(others) < seconds[where], seconds


def rows(folder, kind="train"):
    return MetricStore(folder / "metrics").read(kind)


def on_a_clock_of_its_own(world, folder, slow_rank, since, until):
    """Train with a clock by which a sequence takes 10 ms, give or take 1 %, and on one rank twice as long in some steps; sometimes a rank stalls for 3 s."""
    real, step, draw = DataBalancer._exchange, itertools.count(1), random.Random(world.rank)

    def exchange(self, own):
        now, share = next(step), self.shares[self.replica_of[world.rank]]
        took = share * 0.01 * draw.uniform(0.99, 1.01) * (2.0 if world.rank == slow_rank and since <= now < until else 1.0)
        return real(self, Own(took + 3.0 * (now % 12 == world.rank), 0.0))

    DataBalancer._exchange = exchange
    return run_rank(Run(folder), world)


RUN = {
    "precision__compute": "float64", "batch__global": 28, "batch__micro": 4, "train__steps": 40, "eval__every": 0, "snapshot__every": 20, "snapshot__keep": 0,
    "balance__data": "measured", "model__layers": 1, "model__context": 16, "optim__schedule": "constant",
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "name", "shares"),
    [
        ({}, "replicate 4", [8, 8, 4, 8]),
        pytest.param({"layout__pipeline": 2, "model__layers": 3, "pipeline__schedule": "1f1b"}, "pipeline 2 · replicate 2", [9, 19], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_slowed_rank_is_named_gets_less_to_do_and_its_old_share_when_it_recovers(tmp_path, layout, name, shares):
    alone = {key: value for key, value in layout.items() if not key.startswith(("layout", "pipeline"))}
    even = start_run(small_config(tmp_path, **RUN | alone | {"balance__data": "off", "batch__micro": 28}), "test", "test", 1, tmp_path / "even", None)["run"]
    run = make_run(small_config(tmp_path, **RUN | layout), "test", "test", tmp_path / "run", None).path
    results = run_ranks(on_a_clock_of_its_own, 4, run, 2, 11, 26, timeout_s=400)
    assert len({result["weights_digest"] for result in results}) == 1
    assert [row["loss"] for row in rows(run)] == pytest.approx([row["loss"] for row in rows(Path(even))], rel=1e-9)
    told = [(row["step"], row["text"]) for row in rows(run, "event") if row["what"] == "balance"]
    (step, text), each, least = told[0], 28 // len(shares), min(shares)
    assert 11 <= step <= 15 and "rank 2 on host " in text
    assert f"2.0 times slower than the median; its share of 28 sequences goes from {each} to {least}" in text
    train = {row["step"]: row for row in rows(run)}
    assert all(train[step]["share_min"] == train[step]["share_max"] == each for step in (10, 40))
    assert (train[23]["share_min"], train[23]["share_max"]) == (least, max(shares)) and train[23]["imbalance_predicted"] < 1.06
    assert train[11]["imbalance"] > 1.3
    step, text = told[-1]
    assert 26 < step <= 31 and "rank 2" in text and f"every share is {each} of 28 sequences again" in text and len(told) == 2
    assert read_numbers(list_snapshots(run)[0])["shares"] == {name: shares}


def go_on(world, folder):
    return run_rank(Run(folder), world)


@pytest.mark.slow
def test_a_resumed_run_begins_with_its_shares_and_another_layout_with_even_ones(tmp_path):
    run = make_run(small_config(tmp_path, **RUN | {"train__steps": 15}), "test", "test", tmp_path / "run", None)
    run_ranks(on_a_clock_of_its_own, 4, run.path, 2, 5, 99, timeout_s=400)
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    for folder, layout, shares in ((run, {}, (4, 8)), (copy, {"layout.shard": 2}, (7, 7))):
        save_config(folder, with_values(folder.config(), {"train.steps": 16} | layout))
        run_ranks(go_on, 4, folder.path, timeout_s=400)
        last = rows(folder.path)[-1]
        assert (last["step"], last["share_min"], last["share_max"]) == (16, *shares)
    alone = resume_run(run, {"train.steps": 17}, 1, None)
    assert alone["step"] == 17 and "share_min" not in rows(run.path)[-1]


def blamed(world, config, sample):
    """What a step says of a sequence without a finite loss, under uneven shares."""
    core = built(world, config)
    core.balancer.shares = (15, 9)
    real, micros = Core.loss, core.balancer.micro_batches(core.sequences_of(core.plan.sample_ids(0), world.rank), core.micro, core.shares)
    marked = [core.plan.fetch(ids).tokens_bt.tobytes() for ids in micros if sample in ids]
    Core.loss = lambda self, batch: real(self, batch) * (float("nan") if batch.tokens_bt.tobytes() in marked else 1.0)
    try:
        take_step(core, 0)
    except NonFinite as error:
        return str(error)
    finally:
        Core.loss = real
    return "no error"


def test_the_sequences_of_a_loss_that_is_not_finite_are_named_under_uneven_shares():
    config = small_question(False, batch__micro=4, layout__replicate=2, balance__data="measured")
    for said in run_ranks(blamed, 2, config, 19):  # rank 1 has 15 to 23 in micro-batches of 3
        assert "first in micro-batch 1 of rank 1: random sample 18; random sample 19; random sample 20" in said


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["compile.enabled=on"], r"balance\.data = 'measured' does not go with compile\.enabled = 'on'"),
        (["layout.pipeline=2", "pipeline.check=after"], r"balance\.data = 'measured' does not go with pipeline\.check = 'after'"),
        (["layout.shard=2", "batch.micro=1"], r"balance\.data = 'measured' can move nothing with batch\.micro = 1 and layout\.shard above 1"),
        (["balance.data=maybe"], r"balance\.data = 'maybe'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_naming_both(sets, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(None, ["balance.data=measured", *sets])


@pytest.mark.slow
def test_one_replica_has_nothing_to_balance_and_trains_as_ever(tmp_path):
    results = [start_run(small_config(tmp_path, balance__data=way), "test", "test", 1, tmp_path / way, None) for way in ("off", "measured")]
    assert results[0]["weights_digest"] == results[1]["weights_digest"]


def shares_while_sizes_are_tried(world, config):
    """Shares before, during and after another search for the size of micro-batches, and the losses of steps under each."""
    core, found = built(world, config), []
    core.balancer.shares = (15, 9) if core.balancer.measured else core.balancer.even
    for step, sizes in enumerate(([4], [2, 4], [4])):
        core.tuner.restart(sizes)
        found.append((core.shares, take_step(core, step).loss))
    return found


@pytest.mark.slow
def test_shares_are_even_while_sizes_of_micro_batches_are_tried():
    config = small_question(False, batch__micro="auto", layout__replicate=2, balance__data="measured")
    even = run_ranks(shares_while_sizes_are_tried, 2, with_values(config, {"balance.data": "off"}))[0]
    tried = run_ranks(shares_while_sizes_are_tried, 2, config)[0]
    assert [shares for shares, _ in tried] == [(15, 9), (12, 12), (15, 9)]
    assert [loss for _, loss in tried] == pytest.approx([loss for _, loss in even], rel=1e-12)


def test_sharded_weights_on_a_gpu_are_refused_where_waiting_cannot_be_seen():
    world = World(size=2, device=torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"balance\.data = 'measured' does not go with layout\.shard = 2 on CUDA"):
        DataBalancer(small_question(False, balance__data="measured", layout__shard=2), Layout(shard=2), world, {})


def test_waits_of_a_thread_beside_are_not_taken_off():
    """What the exchange's own thread waits for while a step computes holds nobody up."""
    meter, done = ByteMeter(), threading.Event()

    def aside():
        meter.run_aside()
        with meter.waiting("node.gradients", False):
            done.wait(5)

    own, began = OwnTime(meter, torch.device("cpu")), time.perf_counter()
    with own.measure():
        thread = threading.Thread(target=aside)
        thread.start()
        with meter.waiting("row.activations", False):
            time.sleep(0.02)
        with meter.waiting("shard.weights", False):
            time.sleep(0.03)
        time.sleep(0.04)
        done.set()
        thread.join()
    took, (busy, inner) = time.perf_counter() - began, own.read()
    assert 0.04 <= busy <= took - 0.05 and 0.02 <= inner <= took - 0.07
