"""One optimizer step: micro-batches, exchange, clip, update.

The loss of a step is the mean cross-entropy over all target tokens of the *global* batch. Each micro-batch
contributes its sum times a nominal 1/tokens that every rank knows beforehand; the exact count comes with the step's
one small all-reduce (loss, tokens, stop) and corrects the gradients where masks made it differ. So the result does
not depend on how the batch is cut into ranks and micro-batches.

The step reads its loss and gradient norm before it updates: a value that is not finite stops the run with
the weights still good, and names the sequences that gave it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from penstock.config import SharedError
from penstock.data import Batch
from penstock.optim import clip_grad_norm, lr_factor

if TYPE_CHECKING:
    from penstock.engine.build import Parts


class NonFinite(SharedError):
    """The loss or the gradient norm is NaN or infinite; the weights are still those of the step before."""


@dataclass(frozen=True)
class StepResult:
    """What one step did: mean loss, target tokens, gradient norm before clipping, rate factor, stop request."""

    loss: float
    tokens: int
    grad_norm: float
    lr_factor: float
    stop: bool


def take_step(parts: Parts, step: int) -> StepResult:
    """Advance the state from `step` to `step + 1`; raises `NonFinite` instead of making a bad update."""
    phase = parts.timer.phase
    with phase("data"):
        micro_ids = rank_share(parts.plan.sample_ids(step), parts)
        batches = [parts.plan.fetch(ids) for ids in micro_ids]
    parts.weights.drop_gradients()
    losses, tokens = [], 0
    for index, batch in enumerate(batches):
        if index == len(batches) - 1:
            parts.reducer.arm()
        with phase("forward_backward"):
            loss = parts.loss(batch)
            (loss * parts.nominal_weight).backward()
        losses.append(loss.detach())
        tokens += int((batch.targets_bt >= 0).sum())
    with phase("exchange"):
        parts.reducer.finish()
        totals = parts.world.sum_(_totals(losses, tokens, parts), "totals")
    with phase("optimizer"):
        parts.weights.collect()
        _correct_weight(parts, totals)
        norm = _clip(parts)
        loss_sum, n_tokens, stop, grad_norm = torch.cat([totals, norm.double().view(1)]).tolist()
        if not (math.isfinite(loss_sum) and math.isfinite(grad_norm)):
            raise NonFinite(_blame(parts, step, losses, loss_sum / max(n_tokens, 1), grad_norm))
        factor = lr_factor(parts.config.optim, parts.config.train.steps, step)
        _update(parts, factor)
    return StepResult(loss_sum / n_tokens, int(n_tokens), grad_norm, factor, stop > 0)


def rank_share(sample_ids: np.ndarray, parts: Parts) -> list[np.ndarray]:
    """This rank's sequences of a global batch, cut into micro-batches."""
    mine = np.split(sample_ids, parts.world.size)[parts.world.rank]
    return np.split(mine, len(mine) // parts.micro)


def device_batch(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, targets and document indices of a batch on the device, each (batch, context)."""
    tokens, targets = torch.from_numpy(batch.tokens_bt), torch.from_numpy(batch.targets_bt)
    documents = None if batch.documents_bt is None else torch.from_numpy(batch.documents_bt).to(device, non_blocking=True)
    return tokens.to(device, non_blocking=True), targets.to(device, non_blocking=True), documents


def _totals(losses: list[Tensor], tokens: int, parts: Parts) -> Tensor:
    counts = torch.tensor([tokens, float(parts.stop.requested)], dtype=torch.float64, device=parts.world.device)
    return torch.cat([torch.stack(losses).double().sum().view(1), counts])


def _clip(parts: Parts) -> Tensor:
    """Norm of the whole gradient, after which this rank's part is clipped by it."""
    weights, limit = parts.weights, parts.config.optim.clip
    if weights.whole_here:
        return clip_grad_norm(weights.gradients, limit)
    return clip_grad_norm(weights.gradients, limit, weights.counted(), lambda square: parts.world.sum_(square, "grad_norm"))


def _correct_weight(parts: Parts, totals: Tensor) -> None:
    """Replace the nominal token count in the gradients by the true one; nothing to do where no target is masked."""
    if parts.config.data.document_mask:
        correction = (1.0 / parts.nominal_weight / totals[1]).float()
        torch._foreach_mul_(parts.weights.gradients, correction)


def _update(parts: Parts, factor: float) -> None:
    parts.optimizer.set_factor(factor)
    parts.optimizer.step()
    parts.balance()
    if parts.average is not None:
        parts.average.update()


def _blame(parts: Parts, step: int, losses: list[Tensor], loss: float, grad_norm: float) -> str:
    """Name the step, rank and sequences whose loss is not finite (every rank takes part)."""
    bad = [i for i, value in enumerate(losses) if not math.isfinite(value.item())]
    first_bad = parts.world.gather_numbers(bad[0] if bad else -1, "blame")
    what = f"step {step}: loss {loss}, gradient norm {grad_norm}"
    ids = parts.plan.sample_ids(step)
    for rank, micro in enumerate(first_bad):
        if micro >= 0:
            culprits = np.split(ids, len(first_bad))[rank][int(micro) * parts.micro : (int(micro) + 1) * parts.micro]
            return f"{what}; first in micro-batch {int(micro)} of rank {rank}: {_names(parts, culprits)}"
    return f"{what}; every loss is finite, so the backward pass overflowed in the batch of {_names(parts, ids)}"


def _names(parts: Parts, ids: np.ndarray) -> str:
    shown = "; ".join(parts.plan.describe(int(i)) for i in ids[:4])
    return shown + (f"; and {len(ids) - 4} more" if len(ids) > 4 else "")
