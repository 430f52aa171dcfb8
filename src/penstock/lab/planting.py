"""Where ailments (`ailments.py`) take hold of what a rank computes with: batches, losses, the rate, the router, the network, the clock.

Each place is replaced once, in the process that is to be ill, by what asks the patient and else does as before. Cost: a look at some ailments at each
place. When not to use it: outside the lab; faults of parallel code are planted by `faults.py`.
"""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from penstock.data import Batch, BatchPlan
from penstock.engine import build, late, recording, step
from penstock.models.moe import Router

if TYPE_CHECKING:
    from penstock.lab.ailments import Patient

#: Keeps experts from being chosen.
NEVER = -1e9


def plant(patient: Patient) -> None:
    """Let this process fall ill with whatever the patient has."""
    _batches(patient)
    _losses(patient)
    _rates(patient)
    _experts(patient)
    _network(patient)
    _clock(patient)


def _batches(patient: Patient) -> None:
    fetch = BatchPlan.fetch

    def read(plan: BatchPlan, sample_ids: np.ndarray) -> Batch:
        return patient.read(fetch(plan, sample_ids))

    BatchPlan.fetch = read  # type: ignore[assignment, method-assign]


def _losses(patient: Patient) -> None:
    loss_of = build.Core.loss

    def loss(core: build.Core, batch: Batch) -> Tensor:
        loss = loss_of(core, batch)
        if patient.has("nan") is not None:
            loss = loss * math.nan
        if (times := patient.has("spike")) is not None:
            loss = loss * times
        for kind in ("explode", "vanish"):
            if (times := patient.has(kind)) is not None:
                loss = loss.detach() + times * (loss - loss.detach())
        return loss

    build.Core.loss = loss  # type: ignore[method-assign]


def _rates(patient: Patient) -> None:
    factor = step.lr_factor

    def ill(*arguments: Any) -> float:
        times = patient.has("rate")
        return factor(*arguments) * (1.0 if times is None else times)

    step.lr_factor = late.lr_factor = ill


def _experts(patient: Patient) -> None:
    balance = build.balance_experts

    def ill(model: Any, *arguments: Any) -> dict[str, float]:
        told = balance(model, *arguments)
        if patient.has("experts") is not None:
            for router in (module for module in model.modules() if isinstance(module, Router)):
                router.bias_e[: len(router.bias_e) // 2] = NEVER
        return told

    build.balance_experts = ill


def _network(patient: Patient) -> None:
    all_reduce, stood = dist.all_reduce, set[int]()

    def slow(*arguments: Any, **more: Any) -> Any:
        seconds = patient.has("stall")
        if seconds is not None and patient.step not in stood:
            stood.add(patient.step)
            time.sleep(seconds)
        return all_reduce(*arguments, **more)

    dist.all_reduce = slow


def _clock(patient: Patient) -> None:
    def ahead() -> float:
        return time.time() + (patient.has("clock") or 0.0)

    recording.time = SimpleNamespace(time=ahead, perf_counter=time.perf_counter)  # type: ignore[assignment]
