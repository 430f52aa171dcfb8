"""Ranks agree, sum their gradients, count their bytes, and never wait for ever."""

import time

import pytest
import torch
from ranks import free_port, run_ranks
from torch import nn

from penstock.comm import ByteMeter, GradientReducer, World, choose_device
from penstock.config import UserError


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 5), nn.Linear(5, 5, bias=False))


def gradients_of_rank(world, bucket_mb, micro_batches, unused):
    model = small_model()
    extra = nn.Parameter(torch.zeros(3))
    reducer = GradientReducer([*model.parameters(), *([extra] if unused else [])], world, bucket_mb)
    for micro in range(micro_batches):
        if micro == micro_batches - 1:
            reducer.arm()
        generator = torch.Generator().manual_seed(10 * world.rank + micro)
        model(torch.randn(4, 7, generator=generator)).square().sum().backward()
    reducer.finish()
    return [p.grad.tolist() for p in model.parameters()], extra.grad, world.meter.take()


@pytest.mark.parametrize(("ranks", "bucket_mb", "micro_batches", "unused"), [(2, 25.0, 1, False), (2, 1e-4, 3, True), (3, 5e-4, 2, False)])
def test_reduced_gradients_are_the_sum_over_ranks_and_micro_batches(ranks, bucket_mb, micro_batches, unused):
    answers = run_ranks(gradients_of_rank, ranks, bucket_mb, micro_batches, unused)
    model = small_model().double()
    for rank in range(ranks):
        for micro in range(micro_batches):
            generator = torch.Generator().manual_seed(10 * rank + micro)
            model(torch.randn(4, 7, generator=generator).double()).square().sum().backward()
    for gradients, extra, traffic in answers:
        for mine, parameter in zip(gradients, model.parameters()):
            torch.testing.assert_close(torch.tensor(mine), parameter.grad.float(), rtol=1e-5, atol=1e-5)
        assert (extra is not None and not extra.any()) if unused else extra is None
        n_values = sum(p.numel() for p in model.parameters()) + (3 if unused else 0)
        assert traffic["gradient_bytes"] == 4 * n_values
        assert (traffic["gradient_calls"] > 1) == (bucket_mb < 1)
    assert all(answer[0] == answers[0][0] for answer in answers), "replicas must hold the same bits"


def test_one_rank_reduces_nothing_and_holds_no_buffer():
    model = small_model()
    reducer = GradientReducer(model.parameters(), World(), 25.0)
    reducer.arm()
    model(torch.ones(1, 7)).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    reducer.finish()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters()))


def agreements(world):
    row = world.gather_numbers(world.rank + 0.5, "x")
    return row, world.any(world.rank == 1, "x"), world.any(False, "x"), world.sum_(torch.tensor([1.0, world.rank]), "x").tolist()


def test_ranks_agree_on_numbers_and_flags():
    for row, some, none, total in run_ranks(agreements, 3):
        assert row == [0.5, 1.5, 2.5] and some and not none and total == [3.0, 3.0]


def wait_alone(world):
    from datetime import timedelta

    import torch.distributed as dist

    group = dist.new_group(timeout=timedelta(seconds=2))
    start = time.monotonic()
    if world.rank == 1:
        time.sleep(6)
        return 0.0
    with pytest.raises(RuntimeError):
        dist.all_reduce(torch.ones(1), group=group)
    return time.monotonic() - start


def test_waiting_for_a_rank_that_does_not_come_ends_by_the_deadline():
    assert run_ranks(wait_alone, 2)[0] < 5


def test_a_rank_without_its_peers_is_told_where_it_waited(monkeypatch):
    from penstock.comm import join_world

    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=r"could not meet at localhost:\d+.*layout\.port"):
        join_world("cpu", 1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"run\.device=cpu"):
        choose_device("cuda")


def test_the_meter_counts_and_resets():
    meter = ByteMeter()
    meter.count("a", 3)
    meter.count("a", 4)
    assert meter.take() == {"a_bytes": 7, "a_calls": 2}
    assert meter.take() == {}
