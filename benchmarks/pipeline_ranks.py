"""The part of `pipeline_runs` on real ranks: `python -m benchmarks.pipeline_ranks FOLDER` below the launcher, answers in `FOLDER/figures.json`.

Stages sleep for their times, so that two cores hold eight ranks: sleep takes no core, where matrix products of eight ranks on two cores would wait
for each other and fake a bubble. A message carries the moment at which it was sent, and its receiver sleeps until the transfer's time is over.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from benchmarks.rank import answer
from penstock.comm import World
from penstock.models.later import Product, finish, later, linear
from penstock.parallel import Layout, Mesh
from penstock.parallel.pipeline.kinds import named_schedule
from penstock.parallel.pipeline.runtime import Runtime, link_pairs
from penstock.parallel.pipeline.schedule import Action, Costs, Schedule
from penstock.parallel.pipeline.torch_ir import from_csv
from penstock.parallel.pipeline.torch_runtime import torch_runtime

STEPS, WIDTH, ROWS = 5, 32, 16


class Sleeper:
    """A `runtime.Stage` that sleeps for its works; a tensor is the moment at which it was sent."""

    def __init__(self, stage: int, schedule: Schedule, costs: Costs, unit: float) -> None:
        self._costs, self._unit, self._stage, self._schedule = costs, unit, stage, schedule

    def forward(self, micro: int, x: Tensor | None) -> Tensor | None:
        """Sleep for F."""
        self._arrive(x, self._stage - 1)
        self._sleep("F")
        return torch.tensor([time.perf_counter()], dtype=torch.float64) if self._stage < self._schedule.stages - 1 else None

    def backward(self, micro: int, grad: Tensor | None, split: bool) -> Tensor | None:
        """Sleep for I, or for B."""
        self._arrive(grad, self._stage)
        self._sleep("I" if split else "B")
        return torch.tensor([time.perf_counter()], dtype=torch.float64) if self._stage else None

    def weights(self, micro: int) -> None:
        """Sleep for W."""
        self._sleep("W")

    def complete(self) -> None:
        """There is nothing to exchange."""

    def _arrive(self, sent: Tensor | None, hop: int) -> None:
        if sent is not None and self._schedule.rank_of[hop] != self._schedule.rank_of[hop + 1]:
            time.sleep(max(0.0, sent.item() + self._costs.transfer[hop] * self._unit - time.perf_counter()))

    def _sleep(self, work: Any) -> None:
        time.sleep(self._costs.of(Action(work, self._stage, 0)) * self._unit)


class SleepForward(torch.autograd.Function):
    """Sleeps forward for one time, backward for another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_s: float, backward_s: float) -> Tensor:
        """`x`, after a sleep."""
        ctx.seconds = backward_s
        time.sleep(forward_s)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """`grad`, after a sleep."""
        time.sleep(ctx.seconds)
        return grad, None, None


class SleepingModule(nn.Module):
    """A stage for torch's runtime that sleeps for F, for the gradient of its input, and for that of its weight."""

    def __init__(self, costs: Costs, stage: int, unit: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self._seconds = [unit * times[stage] for times in (costs.forward, costs.input_grad, costs.weight_grad)]

    def forward(self, x: Tensor) -> Tensor:
        """x times the weight."""
        forward_s, input_s, weight_s = self._seconds
        return SleepForward.apply(x, forward_s, input_s) * SleepForward.apply(self.weight, 0.0, weight_s)


def sleeping(world: World, case: dict[str, Any]) -> dict[str, float]:
    """Bubbles of a schedule whose stages sleep: executed with a barrier between steps, and without."""
    schedule, costs = from_csv(case["csv"]), Costs(**{name: tuple(values) for name, values in case["costs"].items()})
    mesh = Mesh(Layout(pipeline=world.size), world)
    stages = {s: Sleeper(s, schedule, costs, case["unit"]) for s, rank in enumerate(schedule.rank_of) if rank == world.rank}
    runtime = Runtime(schedule, world.rank, mesh.links(link_pairs(schedule)), stages, lambda message: torch.empty(1, dtype=torch.float64))
    work = schedule.micro_batches * costs.work_of(list(range(schedule.stages))) / world.size * case["unit"]
    steps, ends = [], []
    for _ in range(STEPS):
        world.barrier()
        steps.append(timed(world, runtime.run))
    world.barrier()
    for _ in range(STEPS):
        runtime.run()
        ends.append(time.perf_counter())
    period = max(world.gather_numbers((ends[-1] - ends[0]) / (STEPS - 1), "period"))
    return {"bubble": 1 - work / sorted(steps)[STEPS // 2], "steady": 1 - work / period}


def against_torch(world: World, case: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step of sleeping stages without transfers: a schedule here, and torch's own ZB-V in torch's runtime, taking turns."""
    from torch.distributed.pipelining import schedules as torch_schedules

    schedule, costs = from_csv(case["csv"]), Costs(**{name: tuple(values) for name, values in case["costs"].items()})
    mesh = Mesh(Layout(pipeline=world.size), world)
    sleepers = {s: Sleeper(s, schedule, costs, case["unit"]) for s, rank in enumerate(schedule.rank_of) if rank == world.rank}
    ours = Runtime(schedule, world.rank, mesh.links(link_pairs(schedule)), sleepers, lambda message: torch.empty(1, dtype=torch.float64))
    halves = Costs.even(world.size, 2, *case["share"])
    mine = sorted({world.rank, 2 * world.size - 1 - world.rank})
    stages = [PipelineStage(SleepingModule(halves, s, case["unit"]), s, 2 * world.size, torch.device("cpu")) for s in mine]
    theirs = torch_schedules.ScheduleZBVZeroBubble([*stages], schedule.micro_batches, loss_fn=lambda y, t: y.sum(), scale_grads=False)
    x = torch.ones(schedule.micro_batches, 1, dtype=torch.float64)

    def step() -> None:
        theirs.step(*((x,) if world.rank == 0 else ()), target=x if world.rank == 0 else None, losses=[], return_outputs=False)

    seconds: dict[str, list[float]] = {"ours": [], "torch": []}
    for turn in range(STEPS):
        for name, run in (("ours", ours.run), ("torch", step)):
            world.barrier()
            took = timed(world, run)
            if turn:
                seconds[name].append(took)
    work = schedule.micro_batches * sum(case["share"][:3]) * case["unit"]
    return {name: 1 - work / sorted(values)[len(values) // 2] for name, values in seconds.items()}


def per_action(world: World) -> dict[str, float]:
    """Seconds an action takes beside the arithmetic of a tiny stage: here, and in torch's runtime, the same ZB-V and matrices, taking turns."""
    schedule = named_schedule("zb-v", world.size, 16)
    mine = [s for s, rank in enumerate(schedule.rank_of) if rank == world.rank]
    mesh = Mesh(Layout(pipeline=world.size), world)
    stages: dict[int, Any] = {s: Tiny(s, schedule.stages - 1) for s in mine}
    ours = Runtime(schedule, world.rank, mesh.links(link_pairs(schedule)), stages, lambda message: torch.empty(ROWS, WIDTH))
    their_stages = [PipelineStage(stack(), s, schedule.stages, torch.device("cpu")) for s in mine]
    theirs = torch_runtime(schedule, their_stages, lambda y, t: y.square().sum())
    x = torch.ones(16 * ROWS, WIDTH)

    def step() -> None:
        theirs.step(*((x,) if 0 in mine else ()), target=x if schedule.stages - 1 in mine else None, losses=[], return_outputs=False)

    seconds: dict[str, list[float]] = {"ours": [], "torch": []}
    for turn in range(22):
        for name, run in (("ours", ours.run), ("torch", step)):
            world.barrier()
            took = timed(world, run)
            if turn > 1:
                seconds[name].append(took / len(schedule.actions[world.rank]))
    ratios = sorted(a / b for a, b in zip(seconds["ours"], seconds["torch"]))
    return {
        "ours_us": 1e6 * sorted(seconds["ours"])[10], "torch_us": 1e6 * sorted(seconds["torch"])[10],
        "ratio": ratios[10], "low": ratios[5], "high": ratios[15],
    }  # fmt: skip


class Tiny:
    """Two small matrices as a `runtime.Stage`, by the operators that Penstock's layers use."""

    def __init__(self, stage: int, last: int) -> None:
        self._stage, self._last = stage, last
        self._weights = [*stack().parameters()]
        self._kept: dict[int, tuple[Tensor | None, Tensor]] = {}
        self._left: dict[int, list[tuple[Tensor, Product]]] = {}

    def forward(self, micro: int, x: Tensor | None) -> Tensor | None:
        """Two products."""
        x = torch.ones(ROWS, WIDTH) if x is None else x.requires_grad_()
        with later.split():
            y = linear(torch.tanh(linear(x, self._weights[0])), self._weights[1])
        self._kept[micro] = (x if x.requires_grad else None, y.square().sum() if self._stage == self._last else y)
        return None if self._stage == self._last else y.detach()

    def backward(self, micro: int, grad: Tensor | None, split: bool) -> Tensor | None:
        """The gradient of the input."""
        x, y = self._kept.pop(micro)
        with later.collect() as self._left[micro]:
            torch.autograd.backward(y, grad)
        return None if x is None else x.grad

    def weights(self, micro: int) -> None:
        """The gradients of the weights."""
        finish(self._left.pop(micro))

    def complete(self) -> None:
        """There is nothing to exchange."""


def stack() -> nn.Sequential:
    """What both runtimes run."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh(), nn.Linear(WIDTH, WIDTH, bias=False))


def timed(world: World, run: Callable[[], object]) -> float:
    """Seconds from the first rank's start to the last one's end; the ranks must be on one host."""
    start = time.perf_counter()
    run()
    end = time.perf_counter()
    return max(world.gather_numbers(end, "end")) - min(world.gather_numbers(start, "start"))


def figures(world: World, folder: Path) -> dict[str, Any]:
    """Answers to the questions in the folder."""
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"sleeping": [sleeping(world, case) for case in questions["sleeping"]]}
    if questions["torch"]:
        found |= {"torch": against_torch(world, questions["torch"])}
    if questions["per_action"]:
        found |= {"per_action": per_action(world)}
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.exit(answer(folder, lambda world: figures(world, folder), 120.0))
