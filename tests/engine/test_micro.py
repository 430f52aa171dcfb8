"""batch.micro = "auto": which sizes are tried, on what the ranks agree, what happens without memory, and that the mathematics stays."""

import math
import random

import pytest
import torch
from ranks import run_ranks
from small_runs import small_config

from penstock.comm import World
from penstock.config import ConfigError, load_config
from penstock.engine import build as building
from penstock.engine.control import StopRequest
from penstock.engine.starting.start import resume_run, start_run
from penstock.engine.step import take_step
from penstock.engine.tune import micro
from penstock.engine.tune.micro import MicroTuner, build_tuner, out_of_memory, possible_sizes, skip_what_does_not_fit
from penstock.lab.equivalence import RandomPlan
from penstock.models import resolve_model
from penstock.monitor import MetricStore
from penstock.parallel import Layout
from penstock.store import find_run, list_snapshots, read_numbers


def settle(tuner, seconds_of):
    """Observe steps that take `seconds_of(size)` until the size is settled; the sizes in the order of their trials."""
    tried = []
    for _ in range(1000):
        if tuner.settled:
            return tried
        if not tried or tried[-1] != tuner.size:
            tried.append(tuner.size)
        tuner.observe(seconds_of(tuner.size))
    raise AssertionError("never settled")


def divisors(share):
    return [size for size in range(1, share + 1) if share % size == 0]


def test_powers_of_two_come_first_and_then_the_sizes_around_the_best():
    tuner = MicroTuner(World(), divisors(48), 4)
    tried = settle(tuner, lambda size: 1 + abs(math.log(size / 12)))
    assert tuner.size == 12 and tried[:3] == [4, 8, 16] and {12, 24} < set(tried[3:]) and 2 not in tried and set(tuner.seconds) == set(tried)
    assert "12: 1 s" in tuner.figures()


@pytest.mark.parametrize("share", [1, 7, 32, 60])
def test_the_fastest_of_all_sizes_is_found_where_time_has_one_valley(share):
    for _ in range(10):
        best, start = random.choice(divisors(share)), random.randint(1, share)
        tuner = MicroTuner(World(), divisors(share), start)
        settle(tuner, lambda size, best=best: 1 + abs(math.log2(size / best)))
        assert tuner.size == best


def test_the_first_step_of_a_size_does_not_count():
    tuner, steps = MicroTuner(World(), [4, 8], 4), []
    while not tuner.settled:
        first = not steps or steps[-1] != tuner.size
        steps.append(tuner.size)
        tuner.observe(9.0 if first and tuner.size == 8 else {4: 1.0, 8: 0.5}[tuner.size])
    assert tuner.size == 8 and tuner.seconds == {4: 1.0, 8: 0.5}


def test_a_machine_that_was_slow_for_a_while_does_not_decide():
    tuner, steps = MicroTuner(World(), [4, 8, 16], 4), 0
    while not tuner.settled:
        steps += 1
        tuner.observe({4: 1.0, 8: 1.2, 16: 1.5}[tuner.size] * (2.0 if steps <= 5 else 1.0))
    assert tuner.size == 4 and tuner.seconds[4] == 1.0


def test_alike_sizes_give_the_smallest():
    tuner = MicroTuner(World(), divisors(16), 16)
    settle(tuner, lambda size: 1.0)
    assert tuner.size == 1


def test_nothing_is_larger_than_what_ran_out_of_memory():
    tuner = MicroTuner(World(), divisors(64), 4)
    while not tuner.settled:
        if tuner.size > 8:
            assert tuner.size == 16
            tuner.give_up()
        else:
            tuner.observe(1 / tuner.size)
    assert tuner.size == 8 and "16: out of memory" in tuner.figures()


def test_a_start_that_does_not_fit_goes_down():
    tuner, tried = MicroTuner(World(), divisors(64), 32), []
    while not tuner.settled:
        tried.append(tuner.size)
        if tuner.size > 4:
            tuner.give_up()
        else:
            tuner.observe(1 / tuner.size)
    assert tuner.size == 4 and tried[:4] == [32, 16, 8, 4]


def test_a_restart_tries_again_among_what_is_allowed_then():
    tuner = MicroTuner(World(), divisors(32), 4)
    settle(tuner, lambda size: 1 / size)
    assert tuner.size == 32
    tuner.restart([1, 2, 4, 8])
    assert not tuner.settled and settle(tuner, lambda size: size)[0] == 8 and tuner.size == 1
    tuner.restart([16])
    assert tuner.settled and tuner.size == 16


def tuned(world, speed):
    tuner = MicroTuner(world, divisors(24), 8)
    return settle(tuner, lambda size: speed[world.rank][size]), tuner.size


def test_ranks_agree_whatever_each_measured():
    speed = [{size: random.uniform(1, 2) for size in divisors(24)} for _ in range(2)]
    (tried, size), other = run_ranks(tuned, 2, speed)
    assert (tried, size) == other
    slowest = {s: max(speed[0][s], speed[1][s]) for s in tried}
    assert slowest[size] <= 1.01 * min(slowest.values())


def settled(*sets):
    """A config as a run's, with batch.micro = "auto"."""
    machine = ["precision.compute=float32", "compile.enabled=off", "train.loss_chunk=64"]
    config = load_config(None, ["model.layers=2", "model.dim=32", "model.heads=2", "batch.micro=auto", *machine, *sets])
    return config.model_copy(update={"model": resolve_model(config.model, 50)})


def test_sizes_beyond_the_memory_are_left_out(monkeypatch):
    config = settled("batch.global=64", "model.context=256")
    needs = {size: micro.step_bytes(config, Layout(), size) for size in divisors(64)}
    assert needs[64] > 4 * needs[8] > 0
    for room, most in ((1.6 * needs[16], 16), (1.4 * needs[16], 8), (0.0, 1)):
        monkeypatch.setattr(micro, "free_bytes", lambda world, room=room: room)
        assert possible_sizes(config, World(), Layout())[-1] == most
    monkeypatch.undo()
    assert micro.free_bytes(World()) > 2**26


def test_sizes_that_the_schedule_does_not_take_are_left_out():
    config = settled("batch.global=24", "model.layers=4", "layout.pipeline=2", "pipeline.schedule=dualpipe-v")  # it takes twice its ranks or more
    assert possible_sizes(config, World(), Layout(pipeline=2)) == [1, 2, 3, 4, 6]
    assert build_tuner(config, World(), Layout(pipeline=2), 0).size == 4


@pytest.mark.parametrize("value", ["0", "many"])
def test_anything_but_a_number_or_auto_is_refused(value):
    with pytest.raises(ConfigError, match=r"^--set: batch\.micro = .* is refused \(whole number, at least 1, or 'auto'\)$"):
        load_config(None, [f"batch.micro={value}"])


def train(tmp_path, name, **changes):
    settings = {"train__steps": 26, "eval__every": 0, "snapshot__every": 0, "batch__global": 8, "batch__micro": "auto"} | changes
    return start_run(small_config(tmp_path, **settings), "test", "test", 1, tmp_path / name, None)


def rows(result, kind="train"):
    return MetricStore(find_run(result["run"]).path / "metrics").read(kind)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"model__moe__experts": 4, "model__moe__bias_rate": 0.05}])
def test_the_loss_is_that_of_any_fixed_size(tmp_path, changes):
    fixed, auto = train(tmp_path, "fixed", batch__micro=2, **changes), train(tmp_path, "auto", **changes)
    assert [row["loss"] for row in rows(auto)] == pytest.approx([row["loss"] for row in rows(fixed)], rel=1e-4)
    sizes = [row["micro_batch"] for row in rows(auto)]
    assert len(set(sizes)) > 1 and {row["micro_batch"] for row in rows(fixed)} == {2}
    told = [row["text"] for row in rows(auto, "event") if row["what"] == "micro_batch"]
    assert len(told) == 1 and told[0].startswith(f"batch.micro = {sizes[-1]} from here on") and all(f"{size}: " in told[0] for size in set(sizes))
    assert not [row for row in rows(fixed, "event") if row["what"] == "micro_batch"]


@pytest.mark.slow
def test_a_resumed_run_begins_to_try_where_it_ended(tmp_path, monkeypatch):
    run = find_run(train(tmp_path, "first")["run"])
    chosen = read_numbers(list_snapshots(run.folder)[-1])["micro"]
    assert chosen == rows({"run": run.path})[-1]["micro_batch"]
    resume_run(run, {"train.steps": 28}, 1, None)
    assert rows({"run": run.path})[26]["micro_batch"] == chosen


@pytest.mark.slow
def test_the_model_is_compiled_once_for_the_size_that_is_chosen(tmp_path, monkeypatch):
    compiled = []

    def compile_model(decoder, config, dtype, size, *rest):
        compiled.append((size, all(p.grad is None for p in decoder.parameters())))
        return building.sequence_loss

    monkeypatch.setattr(building, "compile_model", compile_model)
    chosen = rows(train(tmp_path, "compiled", compile__enabled="on"))[-1]["micro_batch"]
    train(tmp_path, "fixed", compile__enabled="on", batch__micro=2, train__steps=1)
    assert compiled == [(chosen, True), (2, True)]


def scarce(monkeypatch, most, error):
    """Let the loss of more than `most` sequences at a time fail with `error`."""
    real = building.batch_loss

    def batch_loss(decoder, batch, *rest):
        if len(batch.tokens_bt) > most and torch.is_grad_enabled():
            raise error
        return real(decoder, batch, *rest)

    monkeypatch.setattr(building, "batch_loss", batch_loss)


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_running_out_of_memory_costs_the_size_and_not_the_run(tmp_path, monkeypatch, error):
    scarce(monkeypatch, 2, error)
    result = train(tmp_path, "scarce", train__steps=22)
    assert result["state"] == "finished" and max(row["micro_batch"] for row in rows(result)) <= 2
    assert "out of memory" in next(row["text"] for row in rows(result, "event") if row["what"] == "micro_batch")


def test_any_other_error_ends_the_run(tmp_path, monkeypatch):
    scarce(monkeypatch, 2, RuntimeError("shapes do not fit"))
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(tmp_path, "broken")


def rehearsed(world, layout, most):
    """Sizes of the steps until one is settled, and that one, where rank r has memory for `most[r]` sequences."""
    config, real = settled("model.context=16", "batch.global=16", *layout), building.batch_loss

    def batch_loss(decoder, batch, *rest):
        if len(batch.tokens_bt) > most[world.rank]:
            raise torch.OutOfMemoryError
        return real(decoder, batch, *rest)

    building.batch_loss = batch_loss
    core, sizes = building.build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print), []
    while not core.tuner.settled:
        take_step(core, len(sizes))
        sizes.append(core.micro)
        core.tuner.observe(1 / core.micro)
        skip_what_does_not_fit(core)
    return sizes, core.micro


@pytest.mark.slow
def test_one_rank_without_memory_makes_all_fall_back():
    (sizes, size), other = run_ranks(rehearsed, 2, [], (8, 2))
    assert (sizes, size) == other and size == 2 and max(sizes) == 2


@pytest.mark.slow
def test_a_sharded_layout_falls_back_where_all_ranks_run_out_alike():
    (sizes, size), other = run_ranks(rehearsed, 2, ["layout.shard=2"], (4, 4))
    assert (sizes, size) == other and size == 4
