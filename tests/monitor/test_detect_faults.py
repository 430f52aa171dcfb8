"""Faults put into made-up runs are found in time with their place, and runs without faults raise nothing."""

import argparse
import copy
import dataclasses
import functools
import inspect
import re
import typing

import numpy as np
import pytest
from tests.monitor.made_runs import MadeRun, after

from penstock.data import Batch
from penstock.monitor.bus import TokenWatch
from penstock.monitor.bus.tokens import NAMES
from penstock.monitor.detect import Watch
from penstock.monitor.series.table import ABSENT, Names, StepTable


def scaled(name, factor, rank=slice(None)):
    def change(values, since):
        values[name][rank] *= factor

    return change


def added(name, amount, rank=slice(None)):
    def change(values, since):
        values[name][rank] += amount

    return change


def slow_rank(values, since):
    values["time/own"][2] *= 1.3
    values["time/step"][:] = values["time/own"].max() + 0.02


def slow_all(values, since):
    values["time/own"] *= 1.5
    values["time/step"] *= 1.5


def nan_forward(values, since):
    for name in ("activation_norm/layer.02", "activation_norm/layer.03", "loss/total", "grad_norm/total"):
        values[name][:] = np.nan


def leak(values, since):
    values["memory/resident"][1] += 1e6 * since


def poisoned(values, since):
    values["loss/micro.1"][3] += 4.0
    values["loss/total"] += 0.5


def diverges(values, since):
    values["loss/total"] += 0.003 * since


def stands(values, since):
    """The loss of the run at the fault, and no gain from there on."""
    stands.loss = float(values["loss/total"][0]) if since == 0 else stands.loss
    values["loss/total"][:] = stands.loss + 0.02 * np.sin(since)


def many(values, since):
    for name in values:
        if name.startswith(("grad_norm/", "activation_norm/", "data/")):
            values[name] *= 1.9


#: Kind, change, steps that it lasts, within how many steps it must be told, rank, layer.
FAULTS = [
    ("non_finite", nan_forward, 5, 0, None, 2),
    ("loss_spike", poisoned, 2, 2, 3, None),
    ("loss_spike", added("loss/total", 1.5), 10, 2, None, None),
    ("divergence", diverges, 600, 400, None, None),
    ("plateau", stands, 600, 500, None, None),
    ("gradient_explosion", scaled("grad_norm/total", 30.0), 10, 3, None, None),
    ("gradient_vanishing", scaled("grad_norm/total", 1e-5), 30, 10, None, None),
    ("throughput_drop", slow_all, 200, 20, None, None),
    ("straggler", slow_rank, 200, 10, 2, None),
    ("memory_leak", leak, 300, 100, 1, None),
    ("data_repetition", added("data/repeated", 0.8, 1), 10, 3, 1, None),
    ("data_corruption", scaled("data/entropy", 0.3, 2), 5, 1, 2, None),
    ("dead_experts", added("expert_load/layer.01.dead", 0.25), 200, 60, None, 1),
    ("communication_stall", added("wait/total", 3.0), 1, 1, None, None),
    ("clock_skew", added("time/at", 30.0, 3), 100, 4, 3, None),
]


@functools.cache
def before_the_fault(seed, schedule):
    """A run and its watch just before the step of the fault, and that step; nothing was told till then."""
    at = int(np.random.default_rng(seed).integers(320, 420))
    run, watch = MadeRun(seed, steps=2000, schedule=schedule), Watch()
    assert [one for step in range(1, at) for one in watch.update(run.table(step))] == []
    return run, watch, at


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind, change, lasts, within, rank, layer", FAULTS, ids=lambda value: value if isinstance(value, str) else None)
def test_a_fault_is_told_in_time_with_its_place_and_nothing_before_it(kind, change, lasts, within, rank, layer, seed):
    schedule = "cosine" if kind == "divergence" else ("cosine", "restarts", "drop")[seed % 3]
    run, watch, at = copy.deepcopy(before_the_fault(seed, schedule))
    run.faults = [after(at, change, lasts)]
    told = (one for step in range(at, at + within + 1) for one in watch.update(run.table(step)))
    one = next((one for one in told if one.kind == kind), None)
    assert one, f"no {kind} was told"
    assert one.step - at <= within and (one.rank, one.layer) == (rank, layer), one
    assert one.moved and 0 < one.sure <= 1 and one.text and dataclasses.asdict(one)["moved"][0]["name"]


@pytest.mark.slow
@pytest.mark.parametrize("schedule, noise", [("cosine", 0.02), ("restarts", 0.1), ("drop", 0.004)])
def test_a_run_without_faults_raises_nothing(schedule, noise):
    run, watch = MadeRun(11, steps=1000, schedule=schedule, noise=noise), Watch()
    assert [one for step in range(1, 1001) for one in watch.update(run.table(step))] == []


@pytest.mark.slow
@pytest.mark.parametrize("stands, told", [(None, []), (500, ["plateau"])])
def test_a_noisy_loss_stands_only_where_it_gains_nothing_by_its_own_pace(stands, told):
    """A power law under noise twenty times what 400 steps gain late in it, and the same which stands from a step on."""
    watch, random, names, found = Watch(), np.random.default_rng(3), Names(), []
    columns = [names.column(name) for name in ("loss/total", "optim/lr", "optim/progress")]
    for step in range(1, 5001):
        values_rm = np.full((1, len(names)), ABSENT)
        values_rm[0, columns] = 1.0 + 5 * min(step, stands or step) ** -0.35 + 0.1 * random.normal(), 3e-3, step / 20_000
        found += watch.update(StepTable(step, 1.7e9 + step, names, (0,), values_rm))
    assert [one.kind for one in found] == told and all(one.since <= 600 and one.step < 2000 for one in found), found


def test_a_fault_that_lasts_is_told_once_and_again_only_after_it_has_passed():
    run, watch = MadeRun(5, faults=[after(100, nan_forward, 20), after(200, nan_forward, 3)]), Watch()
    assert [one.step for step in range(1, 230) for one in watch.update(run.table(step)) if one.kind == "non_finite"] == [100, 200]


@pytest.mark.slow
def test_a_slow_departure_that_no_expectation_tells_is_among_the_evidence():
    def departs(values, since):
        values["data/surprise"] += 0.006 * since

    evidence = []
    for faults in ([], [after(330, departs)]):
        run, watch = MadeRun(8, faults=[*faults, after(365, added("time/at", 30.0, 3))]), Watch()
        found = [one for step in range(1, 370) for one in watch.update(run.table(step))]
        assert [one.kind for one in found] == ["clock_skew"]
        evidence.append({one.name: one for one in found[0].moved})
    assert "data/surprise" not in evidence[0]
    surprise = evidence[1]["data/surprise"]
    assert 345 <= surprise.since <= 369 and surprise.value > surprise.expected


@pytest.mark.slow
def test_a_rank_that_is_slow_by_design_is_no_straggler():
    def stages(values, since):
        values["time/own"][0] *= 1.8
        values["pipeline/busy"] = values["time/own"]

    run, watch = MadeRun(6, faults=[after(0, stages)]), Watch()
    assert [one for step in range(1, 300) for one in watch.update(run.table(step)) if one.kind == "straggler"] == []


@pytest.mark.parametrize("steps, told", [(9, []), (60, [("straggler", 2)])])
def test_a_rank_is_slow_when_it_is_so_for_longer_than_a_moment_however_short_the_steps(steps, told):
    def quick(values, since):
        for name in ("time/own", "time/step", "wait/total"):
            values[name] *= 0.04  # 20 ms

    def slow(values, since):
        values["time/own"][2] *= 1.8
        values["time/step"][:] = values["time/own"].max()

    run, watch = MadeRun(19, faults=[after(0, quick), after(200, slow, steps)]), Watch()
    found = [one for step in range(1, 300) for one in watch.update(run.table(step))]
    assert [(one.kind, one.rank) for one in found] == told and all(one.since == 200 for one in found)


@pytest.mark.parametrize(
    "odd, told", [([45] * 80, False), (list(range(128, 198)), False), ([0] * 128, True)], ids=["a rule of dashes", "a table of characters", "zeros"]
)
def test_a_rule_or_a_table_in_the_text_is_no_damage_but_zeros_are(odd, told):
    chance, look, watch = np.random.default_rng(20), TokenWatch(256), Watch()
    lines = [line for module in (argparse, inspect, typing) for line in inspect.getsource(module).splitlines() if not re.search(r"(.)\1{15}", line)]
    text = np.frombuffer("\n".join(lines).encode(), dtype=np.uint8).astype(np.int64)
    names, found = Names(NAMES), []
    for step in range(1, 260):
        tokens_bt = text[chance.integers(len(text) - 128, size=8)[:, None] + np.arange(128)]
        if step == 250:
            tokens_bt[3, : len(odd)] = odd
        values_m = look.look([Batch(tokens_bt, tokens_bt, None)])
        found += watch.update(StepTable(step, 1.7e9 + step, names, (0,), values_m[None]))
    assert [(one.kind, one.step) for one in found] == [("data_corruption", 250)] * told


def test_a_hang_is_told_soon_after_the_longest_pause_once_and_not_during_one_that_is_allowed():
    run, watch = MadeRun(7), Watch()
    for step in range(1, 60):
        watch.update(run.table(step))
    assert watch.silence(run.time + 1.0) == []
    (hang,) = watch.silence(run.time + 6.0)
    assert hang.kind == "hang" and hang.since == 60 and watch.silence(run.time + 60.0) == []
    watch.update(run.table(60))
    watch.hang.allow(100.0)
    assert watch.silence(run.time + 50.0) == [] and watch.silence(run.time + 200.0) != []


def test_nothing_is_a_hang_before_the_first_steps_have_told_what_is_usual():
    run, watch = MadeRun(8), Watch()
    assert watch.silence(run.time + 1e6) == []
    watch.update(run.table(1))
    assert watch.silence(run.time + 300.0) == [] and watch.silence(run.time + 700.0) != []


@pytest.mark.slow
def test_a_monitor_that_was_killed_learns_from_the_past_and_tells_only_what_is_new():
    def tables():
        run = MadeRun(9, faults=[after(150, nan_forward, 3), after(420, slow_rank)])
        return [run.table(step) for step in range(1, 440)]

    past = tables()
    watch = Watch()
    watch.replay((table, 0) for table in past[:400])
    told = [one for table in past[400:] for one in watch.update(table)]
    assert {one.kind for one in told} <= {"straggler", "throughput_drop"} and told[0].rank == 2


def test_metrics_that_come_later_and_infinite_ones_break_nothing():
    def strange(values, since):
        values[f"host/new.{since // 10}"] = np.array([np.inf, np.nan, 1.0, -np.inf])

    run, watch = MadeRun(10, faults=[after(50, strange, 100)]), Watch()
    assert [one for step in range(1, 200) for one in watch.update(run.table(step))] == []


def test_what_recording_costs_is_no_evidence():
    def dear(values, since):
        values["monitor/read_seconds"] = np.full(4, 3e-3 if since >= 95 else 3e-5)

    run, watch = MadeRun(21, faults=[after(100, dear), after(200, slow_rank)]), Watch()
    (found,) = [one for step in range(1, 220) for one in watch.update(run.table(step))]
    assert found.kind == "straggler" and "monitor/read_seconds" not in {one.name for one in found.moved}


def test_what_moved_first_is_the_evidence_of_a_step_in_which_much_moves():
    run, watch = MadeRun(12, faults=[after(300, many, 5)]), Watch()
    found = [one for step in range(1, 310) for one in watch.update(run.table(step))]
    (whole,) = [one for one in found if one.kind == "unusual_step"]
    norms = [one for one in whole.moved if one.name.startswith("activation_norm/")]
    assert whole.step <= 302 and whole.since == 300 and len(norms) >= 2 and all(one.since == 300 for one in norms)


def test_one_wild_gradient_that_recovers_is_no_explosion():
    run, watch = MadeRun(13, faults=[after(150, scaled("grad_norm/total", 300.0), 1)]), Watch()
    assert [one for step in range(1, 200) for one in watch.update(run.table(step))] == []


@pytest.mark.slow
def test_a_schedule_that_restarts_does_not_spike_the_loss_but_a_rate_far_too_high_does():
    quiet = MadeRun(5002, ranks=2, steps=3000, schedule="restarts", noise=0.004)
    watch = Watch()
    assert [one for step in range(1, 1010) for one in watch.update(quiet.table(step))] == []
    quiet.faults = [after(1010, scaled("optim/lr", 100.0)), after(1011, added("loss/total", 2.0))]
    assert [one.kind for step in range(1010, 1014) for one in watch.update(quiet.table(step))] == ["loss_spike"]


@pytest.mark.slow
def test_what_follows_from_a_spike_of_the_loss_is_not_told_beside_it():
    def stays_high(values, since):
        values["loss/total"] += 1.5 + 0.003 * since

    run, watch = MadeRun(14, faults=[after(300, stays_high)]), Watch()
    assert [one.kind for step in range(1, 800) for one in watch.update(run.table(step))] == ["loss_spike"]


@pytest.mark.slow
def test_what_was_learned_of_times_tokens_and_memory_is_void_where_a_step_has_other_work():
    """A larger batch, or processes that went on from a snapshot, take other times and read other tokens; the loss goes on."""

    def other(values, since):
        values["data/tokens"] = np.full(4, 8192.0)
        for name in ("time/own", "time/step", "memory/resident", "data/surprise", "data/unique"):
            values[name] *= 2.0

    assert told_of(other, generation_after=10**9) == []
    assert told_of(lambda values, since: (other(values, since), values.pop("data/tokens")), generation_after=200) == []
    assert {one.kind for one in told_of(lambda values, since: (other(values, since), values.pop("data/tokens")), generation_after=10**9)} >= {"data_corruption"}


def told_of(change, generation_after):
    run, watch = MadeRun(15, faults=[after(0, lambda values, since: values.update({"data/tokens": np.full(4, 4096.0)}), 200), after(200, change)]), Watch()
    return [one for step in range(1, 260) for one in watch.update(run.table(step), int(step >= generation_after))]


@pytest.mark.slow
def test_memory_that_is_sampled_now_and_then_leaks_all_the_same():
    def sampled(values, since):
        for rank in range(4):
            if (since + rank) % 12:
                values["memory/resident"][rank] = np.nan

    run, watch = MadeRun(16, faults=[after(200, leak), after(0, sampled)]), Watch()
    found = [one for step in range(1, 350) for one in watch.update(run.table(step))]
    assert [(one.kind, one.rank) for one in found] == [("memory_leak", 1)] and found[0].step <= 350


def test_experts_that_are_idle_in_turn_are_not_dead():
    def in_turn(values, since):
        values["expert_load/layer.01.dead"][:] = 0.1
        values["expert_load/layer.01.idlest"][:] = since // 5 % 16

    run, watch = MadeRun(18, faults=[after(60, in_turn)]), Watch()
    assert [one for step in range(1, 250) for one in watch.update(run.table(step))] == []


@pytest.mark.slow
def test_a_rank_whose_row_is_missing_for_a_step_changes_nothing():
    run, watch = MadeRun(17, faults=[after(300, slow_rank)]), Watch()
    found = []
    for step in range(1, 312):
        table = run.table(step)
        if step % 10 == 0:
            table = StepTable(table.step, table.time, table.names, table.ranks[:-1], table.values_rm[:-1])
        found += watch.update(table)
    assert found and found[0].kind == "straggler" and found[0].rank == 2
