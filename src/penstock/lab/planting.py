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
from penstock.engine import build, late, step
from penstock.engine.record import recording
from penstock.models import Decoder
from penstock.models.moe import Router

if TYPE_CHECKING:
    from penstock.lab.ailments import Patient

#: Keeps experts from being chosen.
NEVER = -1e9


def plant(patient: Patient) -> None:
    """Let this process fall ill with whatever the patient has."""
    for owner, name, ill in (
        (BatchPlan, "fetch", _batches), (build.Core, "loss", _losses), (step, "lr_factor", _rates), (late, "lr_factor", _rates),
        (build, "balance_experts", _experts), (dist, "all_reduce", _network), (recording, "time", _clock),
    ):  # fmt: skip
        setattr(owner, name, ill(patient, getattr(owner, name)))


def _batches(patient: Patient, fetch: Any) -> Any:
    def read(plan: BatchPlan, sample_ids: np.ndarray) -> Batch:
        return patient.read(fetch(plan, sample_ids))

    return read


def _losses(patient: Patient, loss_of: Any) -> Any:
    def ill(core: build.Core, batch: Batch) -> Tensor:
        """The loss as the rank's ailments make it; those of gradients alone leave its value."""
        loss: Tensor = loss_of(core, batch)
        if patient.has("nan") is not None:
            loss = loss * math.nan
        if (times := patient.has("spike")) is not None:
            loss = loss * times
        for kind in ("explode", "vanish"):
            if (times := patient.has(kind)) is not None:
                loss = loss.detach() + times * (loss - loss.detach())
        return loss

    return ill


def _rates(patient: Patient, factor: Any) -> Any:
    def ill(*arguments: Any) -> float:
        times = patient.has("rate")
        return float(factor(*arguments)) * (1.0 if times is None else times)

    return ill


def _experts(patient: Patient, balance: Any) -> Any:
    def ill(model: Decoder, *arguments: Any) -> Any:
        told = balance(model, *arguments)
        if patient.has("experts") is not None:
            for router in (module for module in model.modules() if isinstance(module, Router)):
                router.bias_e[: len(router.bias_e) // 2] = NEVER
        return told

    return ill


def _network(patient: Patient, all_reduce: Any) -> Any:
    stood = set[int]()

    def ill(*arguments: Any, **more: Any) -> Any:
        seconds = patient.has("stall")
        if seconds is not None and patient.step not in stood and not more.get("async_op"):  # where a rank waits, and not where it only begins
            stood.add(patient.step)
            time.sleep(seconds)
        return all_reduce(*arguments, **more)

    return ill


def _clock(patient: Patient, module: Any) -> Any:
    def ahead() -> float:
        return time.time() + (patient.has("clock") or 0.0)

    return SimpleNamespace(time=ahead, perf_counter=module.perf_counter)
