"""A schedule run by torch's own pipeline runtime: the only file that touches torch's private pipeline classes.

torch 2.11 to 2.15 are supported as far as 2.13's source and its names tell; `check_torch` says at once, by name, what a release lacks. Torch adds
sends, receives and FSDP's gathers from the order of the actions (`_prepare_schedule_with_comms`). What it cannot do: begin to reduce gradients
before a stage's last weight gradient, take an optimizer step inside a schedule, or run micro-batches of the last stage out of order, since it
keeps losses in a list by order of arrival (`_maybe_get_loss`): the last is refused here, where torch would give wrong gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import schedules as torch_schedules
from torch.distributed.pipelining.stage import PipelineStage

from penstock.parallel.pipeline.check import ScheduleError, check_schedule
from penstock.parallel.pipeline.schedule import Schedule

#: What is used of torch: each name in `torch.distributed.pipelining.schedules`, and the methods or parameters that must be there.
CONTRACT = {
    "_Action": ("stage_index", "computation_type", "microbatch_index"),
    "_ComputationType": ("FORWARD", "BACKWARD_INPUT", "BACKWARD_WEIGHT", "FULL_BACKWARD"),
    "_PipelineScheduleRuntime": ("_prepare_schedule_with_comms", "step"),
    "PipelineScheduleMulti": ("stages", "n_microbatches", "loss_fn", "scale_grads"),
}


def check_torch() -> None:
    """Raise RuntimeError naming what this torch lacks of what `torch_runtime` needs (`CONTRACT`)."""
    for name, wanted in CONTRACT.items():
        found = getattr(torch_schedules, name, None)
        parameters = inspect.signature(found).parameters if name == "PipelineScheduleMulti" and found else {}
        lacking = [part for part in wanted if not (hasattr(found, part) or part in parameters)]
        if found is None or lacking:
            what = f"torch.distributed.pipelining.schedules.{name}" + (f" ({', '.join(lacking)})" if found else "")
            raise RuntimeError(f"torch {torch.__version__} has no {what}, which penstock.parallel.pipeline.torch_runtime needs")


def torch_runtime(schedule: Schedule, stages: list[PipelineStage], loss_fn: Callable[..., Tensor], **options: Any) -> Any:
    """Torch's `_PipelineScheduleRuntime` with `schedule` loaded; its `step(*args, target=..., losses=...)` runs one step.

    `stages` are this rank's, ascending, made with `num_stages = schedule.stages` and a group of `schedule.ranks` ranks; `loss_fn(output, target)`
    gives the loss of a micro-batch, of which gradients are those of the sum (pass `scale_grads=True` for their mean). More `options` are torch's.
    Raises `ScheduleError` for a schedule that cannot be run, or not by torch; RuntimeError for a torch without what is needed.
    """
    check_torch()
    check_schedule(schedule)
    _check_losses(schedule)
    runtime = torch_schedules._PipelineScheduleRuntime(
        stages, n_microbatches=schedule.micro_batches, loss_fn=loss_fn, **{"scale_grads": False, **options}
    )
    works = torch_schedules._ComputationType
    named = {"F": works.FORWARD, "I": works.BACKWARD_INPUT, "W": works.BACKWARD_WEIGHT, "B": works.FULL_BACKWARD}
    rows: dict[int, list[Any]] = {
        rank: [torch_schedules._Action(stage, named[work], micro) for work, stage, micro in row] for rank, row in enumerate(schedule.actions)
    }
    runtime._prepare_schedule_with_comms(rows)
    return runtime


def _check_losses(schedule: Schedule) -> None:
    last = schedule.stages - 1
    order = [action.micro for action in schedule.actions[schedule.rank_of[last]] if action.work == "F" and action.stage == last]
    wrong = next((micro for place, micro in enumerate(order) if micro != place), None)
    if wrong is not None:
        raise ScheduleError(f"{last}F{wrong} is out of order, and torch's runtime takes the last stage's micro-batches in their order only")
