"""Ranks agree, sum their gradients, count their bytes, and never wait for ever."""

import subprocess
import sys
import time

import pytest
import torch
from ranks import free_port, run_ranks
from torch import nn

from penstock.comm import ByteMeter, GradientReducer, Route, World, choose_device, exchange, gather, scatter_sum, total
from penstock.config import UserError


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 5), nn.Linear(5, 5, bias=False))


def gradients_of_rank(world, bucket_mb, micro_batches, unused):
    model = small_model()
    extra = nn.Parameter(torch.zeros(3))
    reducer = GradientReducer([(p, Route(world.axis)) for p in [*model.parameters(), *([extra] if unused else [])]], bucket_mb)
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
        assert traffic["world.gradients_bytes"] == pytest.approx(2 * 4 * n_values * (ranks - 1) / ranks, abs=traffic["world.gradients_calls"])
        assert (traffic["world.gradients_calls"] > 1) == (bucket_mb < 1)
    assert all(answer[0] == answers[0][0] for answer in answers), "replicas must hold the same bits"


def test_one_rank_reduces_nothing_and_holds_no_buffer():
    model = small_model()
    reducer = GradientReducer([(p, Route(World().axis)) for p in model.parameters()], 25.0)
    reducer.arm()
    model(torch.ones(1, 7)).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    reducer.finish()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters()))


def agreements(world):
    row = world.gather_numbers(world.rank + 0.5, "x")
    return row, world.any(world.rank == 1, "x"), world.any(False, "x"), world.sum_(torch.tensor([1.0, world.rank]), "x").tolist()


def test_ranks_agree_on_numbers_and_flags():
    for row, some, none, summed in run_ranks(agreements, 3):
        assert row == [0.5, 1.5, 2.5] and some and not none and summed == [3.0, 3.0]


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


@pytest.mark.slow
def test_waiting_for_a_rank_that_does_not_come_ends_by_the_deadline():
    assert run_ranks(wait_alone, 2)[0] < 5


@pytest.mark.slow
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
    meter.count("a", 3, "broadcast")
    meter.count("a", 4, "all_gather")
    assert meter.take() == {"a_bytes": 7, "a_calls": 2} and meter.operations == {"broadcast": 1, "all_gather": 1}
    assert meter.take() == {}


def every_collective(world):
    axis, me = world.axis, world.rank
    x = torch.arange(6.0).view(2, 3) + 10 * me
    send = [1, 1] if me == 0 else [0, 2]
    results = {
        "all_reduce": axis.all_reduce(x.clone(), "p"),
        "maximum": axis.all_reduce(x.clone(), "p", maximum=True),
        "all_gather": axis.all_gather(x, 1, "p"),
        "reduce_scatter": axis.reduce_scatter(torch.cat([x, x], 1), 1, "p"),
        "broadcast": axis.broadcast(x.clone(), 1, "p"),
        "reduce": axis.reduce(x.clone(), 1, "p"),
        "all_to_all": axis.all_to_all(x, send, [1, 0] if me == 0 else [1, 2], "p"),
    }
    return {name: value.tolist() for name, value in results.items()}, world.meter.take()


def test_each_collective_does_what_it_says_and_counts_what_a_rank_sends():
    (zero, sent0), (one, sent1) = run_ranks(every_collective, 2)
    a, b = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3) + 10
    for got in (zero, one):
        assert got["all_reduce"] == (a + b).tolist() and got["maximum"] == b.tolist() and got["broadcast"] == b.tolist()
        assert got["all_gather"] == torch.cat([a, b], 1).tolist() and got["reduce_scatter"] == (a + b).tolist()
    assert one["reduce"] == (a + b).tolist()
    assert zero["all_to_all"] == a[:1].tolist() and one["all_to_all"] == torch.cat([a[1:], b]).tolist()
    everywhere = 24 + 24 + 24 + 24 + 12 + 12  # two all-reduces, a gather and a scatter of 48 bytes, and broadcast and reduce of 24 halved
    assert sent0["world.p_bytes"] == everywhere + 12 and sent1["world.p_bytes"] == everywhere
    assert sent0["world.p_calls"] == 7 and sent0["world.p_s"] > 0


def differentiable_pairs(world):
    torch.manual_seed(world.rank)
    found = {}
    for name, call in {
        "gather": lambda x: gather(x, world.axis, 1, "p"),
        "scatter_sum": lambda x: scatter_sum(x, world.axis, 1, "p"),
        "total": lambda x: total(x, world.axis, "p"),
        "exchange": lambda x: exchange(x, world.axis, [1, 3], [1, 3], "p") if world.rank == 0 else exchange(x, world.axis, [3, 1], [3, 1], "p"),
    }.items():
        x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
        y = call(x)
        weight = torch.randn_like(y)
        (y * weight).sum().backward()
        shift = torch.randn_like(x)
        moved = call((x + shift).detach())
        # the derivative of the ranks' summed loss along everybody's shift, by the gradient and by the function itself, which is linear
        found[name] = (world.sum_((x.grad * shift).sum(), "t").item(), world.sum_(((moved - y) * weight).sum().detach(), "t").item())
    return found


def test_gradients_through_collectives_are_those_of_the_ranks_summed_loss():
    for name, (by_gradient, by_function) in run_ranks(differentiable_pairs, 2)[0].items():
        assert by_gradient == pytest.approx(by_function, rel=1e-12), name


@pytest.mark.slow
def test_a_job_that_torchrun_starts_again_meets_anew(tmp_path):
    script = tmp_path / "meet.py"
    script.write_text(
        "import os\nfrom penstock.comm import join_world, leave_world\nworld = join_world('cpu', 20.0)\nagain = os.environ['TORCHELASTIC_RESTART_COUNT'] == '1'\n"
        "if world.rank == 1 and not again:\n    os.kill(os.getpid(), 9)\n"
        "if world.gather_numbers(world.rank, 'test') == [0, 1, 2] and again and world.is_lead:\n    print('met', flush=True)\n"
        "leave_world(world)\nos._exit(0)\n"  # what torch's threads do at the interpreter's end is not asked
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "--max-restarts=1", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "met\n"), done.stderr
