"""What a step is known to have done without measuring it: its result, where training stands, what the rank holds; as metrics.

    at_step(...)     where training stood when the step was through: what the next step changes, taken in the training thread
    of_step(...)     the metrics of a step, from that and its result
    of_failure(...)  the same for a step whose loss or gradient is not finite
    held(parts)      what does not change while the same model trains: bytes by kind, FLOPs, ranks, settings

Only `at_step` and `held` look at the run; the others may be worked out in another thread (`rows.py`). Cost: `at_step` a few µs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from penstock.config import Config
from penstock.models import flops_per_token

if TYPE_CHECKING:
    from penstock.engine.build import Core, Parts
    from penstock.engine.step import StepResult
    from penstock.parallel.pipeline.plan import PipelinePlan


class Standing(NamedTuple):
    """Where training stood when `step` was through; seconds and counts since the run began, the step of its last snapshot, a pipeline's plan."""

    step: int
    until: int
    tokens: int
    device_s: float
    snapshot: int
    recoveries: int
    left_out: int
    micro: int
    plan: PipelinePlan | None


def at_step(parts: Parts, step: int, seconds: float) -> Standing:
    """Where training stands after `step`, which took `seconds`."""
    progress, pipeline = parts.progress, parts.pipeline
    return Standing(
        step, parts.until, progress.tokens, progress.device_s + seconds * parts.world.size, parts.saving.step, len(progress.recoveries),
        progress.left_out, parts.micro, None if pipeline is None else pipeline.plan,
    )  # fmt: skip


def of_step(config: Config, result: StepResult, at: Standing, seconds: float, utilisation: Callable[[float], float]) -> dict[str, float]:
    """The metrics of a step that took `seconds`; `utilisation` tells the share of the measured peak that so many tokens a second use."""
    speed = result.tokens / seconds
    optim, price, hours = config.optim, config.cost.per_device_hour, at.device_s / 3600
    return _standing(at) | {
        "loss/total": result.loss,
        "grad_norm/total": result.grad_norm,
        "optim/lr": optim.lr * result.lr_factor,
        "optim/lr_factor": result.lr_factor,
        "optim/clip_scale": min(1.0, optim.clip / (result.grad_norm + 1e-6)) if optim.clip else 1.0,
        "optim/clipped": float(bool(optim.clip) and result.grad_norm > optim.clip),
        "snapshot/last": float(result.stop or at.step == at.until),
        "data/tokens": result.tokens,
        "data/tokens_total": at.tokens,
        "cost/tokens_per_s": speed,
        "cost/mfu": utilisation(speed),
        "cost/device_hours": hours,
        **({"cost/money": hours * price} if price else {}),
        **({"optim/muon_lr": optim.muon_lr * result.lr_factor} if optim.kind == "muon" else {}),
    }  # fmt: skip


def of_failure(loss: float, grad_norm: float, at: Standing) -> dict[str, float]:
    """The metrics of a step that made no update, as its loss or gradient norm was not finite."""
    return _standing(at) | {"loss/total": loss, "grad_norm/total": grad_norm, "fault/non_finite": 1.0}


def _standing(at: Standing) -> dict[str, float]:
    return {
        "optim/progress": at.step / max(1, at.until),
        "data/micro_batch": at.micro,
        "snapshot/age": at.step - max(0, at.snapshot),
        "fault/recoveries": at.recoveries,
        "fault/batches_left_out": at.left_out,
        **({} if at.plan is None else {"pipeline/planned_bubble": at.plan.bubble}),
    }


def held(parts: Core) -> dict[str, float]:
    """What this rank holds of the state, by kind, and what the model costs."""
    n_bytes = {name: tensor.numel() * tensor.element_size() for name, tensor in parts.tensors().items()}
    own = sum(tensor.numel() * tensor.element_size() for tensor in parts.weights.locals.values())
    flops = flops_per_token(parts.config.model)
    return {
        "memory/weights": own,
        "memory/gradients": own,
        "memory/moments": sum(n for name, n in n_bytes.items() if name.startswith("optim.")),
        "memory/averages": sum(n for name, n in n_bytes.items() if name.startswith("ema.")),
        "memory/state": sum(n_bytes.values()),
        "cost/flops_per_token": flops,
        "cost/flops": flops * parts.config.batch.global_ * parts.config.model.context,
        "cost/parameters": parts.weights.n_total,
        "cost/ranks": parts.world.size,
        "cost/way": way_of(parts.config),
        "host/torch_threads": torch.get_num_threads(),
    }


def way_of(config: Config) -> float:
    """A checksum of the settings that say how a step is computed, without what it computes; up to 2³², which a float holds exactly."""
    sections = [getattr(config, name).model_dump_json() for name in ("layout", "precision", "exchange", "pipeline", "compile", "balance")]
    return float(zlib.crc32("".join(sections).encode()))
