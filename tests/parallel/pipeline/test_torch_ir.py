"""Torch's schedule CSV reads back as it was written, its faults are named by place, and torch's own runtime is the judge of our schedules."""

import pytest
import torch
from ranks import run_ranks
from torch import nn

from penstock.parallel.pipeline import torch_runtime as adapter
from penstock.parallel.pipeline.check import ScheduleError
from penstock.parallel.pipeline.kinds import KINDS, named_schedule
from penstock.parallel.pipeline.schedule import Action, Costs, Schedule, wire
from penstock.parallel.pipeline.synthesise import synthesise
from penstock.parallel.pipeline.torch_ir import from_csv, read_csv, to_csv

RANKS, MICROS, ROWS, WIDTH = 4, 8, 3, 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_written_reads_back_the_same(kind):
    schedule = named_schedule(kind, 4, 8)
    back = from_csv(to_csv(schedule))
    assert (back.actions, back.rank_of, back.micro_batches) == (schedule.actions, schedule.rank_of, schedule.micro_batches)


def test_what_torch_adds_for_its_runtime_is_left_out_and_pairs_are_parted():
    text = "0UNSHARD,0F0,0SEND_F0,,0F1,(1F0;1B0)OVERLAP_F_B,0RECV_B0,0B0,1F1,1B1,0B1,0REDUCE_GRAD,0RESHARD\n\n"
    schedule = from_csv(text)
    assert [str(a) for a in schedule.actions[0]] == "0F0 0F1 1F0 1B0 0B0 1F1 1B1 0B1".split()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0F0,0B0\n1F0,1Q0\n", "row 2, cell 2: '1Q0' is no action"),
        ("0F0,0B0,0F0\n1F0,1B0\n", "row 1, cell 3: 0F0 is there twice, first in row 1, cell 1"),
        ("0F0,0B0,1B0\n1F0\n", "row 2, cell 1: 1F0 is in the row of rank 1, and other actions of stage 1 are in that of rank 0"),
        ("0F0,0B0\n1F0\n", "rank 1: 1B0 \\(or 1I0 and 1W0\\) is missing"),
        ("0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n", "wait for each other: .*0B0 needs 1B0"),
        ("0F0,0B0\n2F0,2B0\n", "no action of stage 1"),
        ("\n,,\n", "has no action"),
    ],
)
def test_faults_of_a_csv_are_told_by_place(text, told):
    with pytest.raises(ScheduleError, match=f"mine.csv.*{told}"):
        from_csv(text, name="mine.csv")


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    from penstock.config import UserError

    with pytest.raises(UserError, match=r"cannot read the schedule .*none\.csv"):
        read_csv(tmp_path / "none.csv")


def test_torch_has_what_the_adapter_uses():
    """Fails with the missing name when a release of torch changes its private classes."""
    adapter.check_torch()


def test_a_torch_that_lacks_a_name_is_told_by_name(monkeypatch):
    monkeypatch.delattr(adapter.torch_schedules._PipelineScheduleRuntime, "_prepare_schedule_with_comms")
    with pytest.raises(RuntimeError, match=r"has no .*_PipelineScheduleRuntime \(_prepare_schedule_with_comms\)"):
        adapter.check_torch()


def test_losses_out_of_order_are_refused_for_torch():
    rows = ((Action("F", 0, 1), Action("B", 0, 1), Action("F", 0, 0), Action("B", 0, 0)),)
    with pytest.raises(ScheduleError, match="0F1 is out of order"):
        adapter.torch_runtime(Schedule("backwards", (0,), 2, rows), [], nn.functional.mse_loss)


def layer(stage):
    """One stage of the stack, with weights that its number gives; no biases on even stages."""
    torch.manual_seed(100 + stage)
    return nn.Sequential(nn.Linear(WIDTH, 12, bias=stage % 2 == 1), nn.Tanh(), nn.Linear(12, WIDTH)).double()


def batch():
    torch.manual_seed(7)
    return torch.randn(MICROS * ROWS, WIDTH).double(), torch.randn(MICROS * ROWS, WIDTH).double()


def squares(output, target):
    return ((output - target) ** 2).sum()


def run_schedules(world, schedules):
    """Every schedule in torch's runtime, two steps each: this rank's gradients by stage, and the losses, after the second."""
    from torch.distributed.pipelining import PipelineStage

    results = []
    x, y = batch()
    for schedule in schedules:
        mine = [s for s, rank in enumerate(schedule.rank_of) if rank == world.rank]
        parts = {s: layer(s) for s in mine}
        stages = [PipelineStage(parts[s], s, schedule.stages, torch.device("cpu")) for s in mine]
        runtime = adapter.torch_runtime(schedule, stages, squares)
        for _ in range(2):
            for part in parts.values():
                part.zero_grad()
            losses = []
            inputs = (x,) if 0 in mine else ()
            runtime.step(*inputs, target=y if schedule.stages - 1 in mine else None, losses=losses, return_outputs=False)
        grads = {s: [p.grad for p in part.parameters()] for s, part in parts.items()}
        results.append((grads, torch.stack(losses) if losses else None))
    return results


def plain(stages):
    """Gradients and losses of one process that runs the whole stack."""
    x, y = batch()
    stack = nn.Sequential(*(layer(s) for s in range(stages)))
    losses = torch.stack([squares(stack(a), b) for a, b in zip(x.chunk(MICROS), y.chunk(MICROS))])
    losses.sum().backward()
    return [[p.grad for p in part.parameters()] for part in stack], losses.detach()


def shuffled_weights():
    """ZB-V with its weight gradients at the very end, last micro-batch first: an order that no kind makes."""
    base = named_schedule("zb-v", RANKS, MICROS)
    rows = tuple((*(a for a in row if a.work != "W"), *sorted((a for a in row if a.work == "W"), key=lambda a: -a.micro)) for row in base.actions)
    return Schedule("late", base.rank_of, MICROS, rows)


def synthesised(chunks):
    """Made for stages of unlike times, in less memory than 1F1B's."""
    rank_of = wire(RANKS, chunks, "wave")
    times = [tuple(1.0 + 0.3 * ((7 * s + k) % 5) for s in range(len(rank_of))) for k in range(3)]
    return synthesise(Costs(*times, (0.1,) * (len(rank_of) - 1), (1 / chunks,) * len(rank_of)), rank_of, MICROS, cap=0.75)


def check_gradients(schedules):
    ranks = run_ranks(run_schedules, RANKS, schedules)
    for number, schedule in enumerate(schedules):
        grads, losses = plain(schedule.stages)
        found = {s: got for rank in ranks for s, got in rank[number][0].items()}
        for stage, wanted in enumerate(grads):
            torch.testing.assert_close(found[stage], wanted, rtol=1e-12, atol=1e-12, msg=f"{schedule.kind}, stage {stage}")
        torch.testing.assert_close(ranks[schedule.rank_of[-1]][number][1].detach(), losses, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_our_schedules_have_exact_gradients_in_torchs_runtime():
    check_gradients([named_schedule("zb-v", RANKS, MICROS), shuffled_weights(), synthesised(2)])


@pytest.mark.slow
def test_every_kind_has_exact_gradients_in_torchs_runtime():
    check_gradients([*(named_schedule(kind, RANKS, MICROS) for kind in KINDS), named_schedule("interleaved", RANKS, MICROS, 3), synthesised(4)])
