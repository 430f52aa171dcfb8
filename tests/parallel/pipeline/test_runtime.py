"""The runtime on gloo ranks: every micro-batch passes its stages in order and comes back, whatever the schedule, and a rank that ends is named."""

import contextlib
import time

import pytest
import torch
from ranks import run_ranks

from penstock.comm import LinkError
from penstock.parallel import Layout, Mesh
from penstock.parallel.pipeline.kinds import KINDS, named_schedule
from penstock.parallel.pipeline.runtime import Runtime, link_pairs
from penstock.parallel.pipeline.schedule import Costs
from penstock.parallel.pipeline.simulate import simulate

RANKS = 4


class Counting:
    """A stage that checks what comes: activations carry the micro-batch and the sum of the stages passed; gradients the same on the way back."""

    def __init__(self, stage, last, of_rank=None):
        self.stage, self.last, self.done, self.held, self.completed = stage, last, [], set(), 0
        self.of_rank = {"now": 0, "most": 0} if of_rank is None else of_rank  # what all stages of the rank hold together

    def hold(self, by):
        self.of_rank["now"] += by
        self.of_rank["most"] = max(self.of_rank["most"], self.of_rank["now"])

    def forward(self, micro, x):
        self.done.append(("F", micro))
        self.held.add(micro)
        self.hold(1)
        if x is None:
            assert self.stage == 0
            return torch.tensor([float(micro), 0.0])
        assert x.tolist() == [micro, sum(range(1, self.stage))] or self.stage == 1
        return None if self.stage == self.last else torch.tensor([x[0], x[1] + self.stage])

    def backward(self, micro, grad, split):
        self.done.append(("I" if split else "B", micro))
        assert micro in self.held
        if not split:
            self.held.remove(micro)
            self.hold(-1)
        if self.stage == self.last:
            assert grad is None
            return torch.tensor([float(micro), float(self.last)])
        assert grad.tolist() == [micro, sum(range(self.stage + 1, self.last + 1))], (self.stage, micro, grad)
        return None if self.stage == 0 else torch.tensor([grad[0], grad[1] + self.stage])

    def weights(self, micro):
        self.done.append(("W", micro))
        self.held.remove(micro)
        self.hold(-1)

    def complete(self):
        assert not self.held, "the last gradient is there when nothing is under way"
        self.completed += 1


def run_kinds(world, steps):
    """Every kind with one set of ranks; what the rank held at most, in units of its share of a micro-batch."""
    found = {}
    mesh = Mesh(Layout(pipeline=RANKS), world)
    for kind in KINDS:
        schedule = named_schedule(kind, RANKS, 9)
        of_rank = {"now": 0, "most": 0}
        stages = {s: Counting(s, schedule.stages - 1, of_rank) for s, rank in enumerate(schedule.rank_of) if rank == world.rank}
        runtime = Runtime(schedule, world.rank, mesh.links(link_pairs(schedule)), stages, lambda message: torch.empty(2))
        world.meter.take()
        for _ in range(steps):
            marks = runtime.run()
        assert [mark.action for mark in marks] == list(schedule.actions[world.rank]) and all(mark.start <= mark.end for mark in marks)
        assert all(stage.completed == steps for stage in stages.values())
        hops = sum(a == world.rank != b for a, b in zip(schedule.rank_of, schedule.rank_of[1:]))
        back = sum(b == world.rank != a for a, b in zip(schedule.rank_of, schedule.rank_of[1:]))
        sent = world.meter.take()["pipeline.activations_bytes"]
        assert sent == steps * 9 * (hops + back) * 8, (kind, sent)
        found[kind] = of_rank["most"] / len(stages)
    return found


@pytest.mark.slow
def test_every_kind_moves_every_micro_batch_through_every_stage_and_holds_what_the_simulator_says():
    held = run_ranks(run_kinds, RANKS, 2)
    for kind in KINDS:
        schedule = named_schedule(kind, RANKS, 9)
        peak = simulate(schedule, Costs.even(RANKS, schedule.chunks, 1, 1, 1, 0)).peak_memory
        for rank in range(RANKS):
            assert held[rank][kind] == pytest.approx(peak[rank]), (kind, rank)


def end_in_the_middle(world, kind):
    """What a rank says when rank 2 ends during a step, and how long it took to say so."""
    schedule = named_schedule(kind, RANKS, 8)
    mesh = Mesh(Layout(pipeline=RANKS), world, timeout_s=20)
    stages = {s: Counting(s, schedule.stages - 1) for s, rank in enumerate(schedule.rank_of) if rank == world.rank}
    runtime = Runtime(schedule, world.rank, mesh.links(link_pairs(schedule)), stages, lambda message: torch.empty(2))
    runtime.run()
    if world.rank == 2:
        next(iter(stages.values())).weights = lambda micro: 1 / 0
        with contextlib.suppress(ZeroDivisionError):
            runtime.run()
        return "ended", 0.0
    began = time.monotonic()
    try:
        runtime.run()
        runtime.run()
    except LinkError as error:
        return str(error), time.monotonic() - began
    return "no error", 0.0


def test_neighbours_of_a_rank_that_ends_say_at_once_what_they_waited_for():
    answers = run_ranks(end_in_the_middle, RANKS, "zb-h1")
    for rank, said in ((1, "gradient of stage 2, micro-batch"), (3, "activations of stage 2, micro-batch")):
        text, seconds = answers[rank]
        assert (said in text or "sending" in text or "did not take" in text) and "rank 2" in text and seconds < 15, answers
