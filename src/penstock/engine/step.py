"""One optimizer step: micro-batches, exchange, clip, update.

The loss of a step is the mean cross-entropy over all target tokens of the *global* batch. Each micro-batch
contributes its sum times a nominal 1/tokens that every rank knows beforehand; the exact count comes with the step's
one small all-reduce (loss, tokens, stop, commands) and corrects the gradients where masks made it differ. So the result does
not depend on how the batch is cut into ranks and micro-batches.

The step reads its loss and gradient norm before it updates: a value that is not finite stops the run with
the weights still good, and names the sequences that gave it. A policy may have it look for steps far above the usual too (`guard/judge.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from penstock.data import Batch
from penstock.engine.exchange import Arrival, apart_of, meet
from penstock.engine.guard.judge import BadStep
from penstock.optim import clip_grad_norm, lr_factor
from penstock.parallel import sync_replicas

if TYPE_CHECKING:
    from penstock.engine.build import Core


class NonFinite(BadStep):
    """The loss or the gradient norm is NaN or infinite; the weights are still those of the step before."""


@dataclass(frozen=True)
class StepResult:
    """What one step did: mean loss, target tokens, gradient norm before clipping, rate factor, stop request, whether a command waits."""

    loss: float
    tokens: int
    grad_norm: float
    lr_factor: float
    stop: bool
    asked: bool = False


def take_step(parts: Core, step: int) -> StepResult:
    """Advance the state from `step` to `step + 1`; raises `BadStep` instead of making a bad update."""
    return apply_gradients(parts, step, *accumulate(parts, step))


def apply_gradients(parts: Core, step: int, losses: list[Tensor], totals: Tensor, grads: list[Tensor]) -> StepResult:
    """The rest of a step, from what `accumulate` returned for it; raises `BadStep` instead of making a bad update."""
    with parts.timer.phase("optimizer"):
        norm = gradient_norm(parts, grads, parts.config.optim.clip)
        loss_sum, n_tokens, stop, asked, grad_norm = torch.cat([totals, norm.double().view(1)]).tolist()
        if not (math.isfinite(loss_sum) and math.isfinite(grad_norm)):
            loss = loss_sum / max(n_tokens, 1)
            raise NonFinite(_blame(parts, step, losses, loss, grad_norm), loss, grad_norm)
        if bad := parts.judge.objects(loss_sum / n_tokens, grad_norm):
            kind, why = bad
            raise BadStep(f"step {step + 1} is not applied: {why}", loss_sum / n_tokens, grad_norm, kind)
        factor = lr_factor(parts.config.optim, parts.config.train.steps, step)
        update(parts, factor, step)
    with parts.timer.phase("exchange"):
        meet(parts, step + 1)
    return StepResult(loss_sum / n_tokens, round(n_tokens), grad_norm, factor, stop > 0, asked > 0)


def accumulate(parts: Core, step: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Gradients of global batch `step` of the mean loss, complete on every rank.

    Returns this rank's summed loss of each micro-batch; the summed loss, target tokens, stop requests and waiting commands of all ranks
    (float64); and this rank's gradients.
    """
    arrival, between = Arrival(parts), parts.reducer.between
    while True:
        losses, tokens, grads = gradients(parts, step)
        with parts.timer.phase("exchange"):
            totals = parts.world.sum_(local_totals(losses, tokens, parts), "totals")
            if not between.withholds or arrival.agreed(between.faults, between.overflow):
                break
    if arrival.overflow:  # a gradient that could not be sent is not finite, which the check of the norm will say on all ranks
        torch._foreach_mul_(grads, math.nan)
    _correct_weight(parts, grads, totals)
    return losses, totals, grads


def gradients(parts: Core, step: int) -> tuple[list[Tensor], int, list[Tensor]]:
    """Gradients of global batch `step` with the nominal weight of the loss, summed over the replicas of each weight.

    Returns this rank's summed loss of each micro-batch and its target tokens, none where other ranks compute the loss, and its gradients.
    """
    phase = parts.timer.phase
    with phase("data"):
        micro_ids = micro_batches(parts.sequences_of(parts.plan.sample_ids(step), parts.world.rank), parts)
        batches = [parts.own_tokens(parts.plan.fetch(ids)) for ids in micro_ids]
    parts.weights.drop_gradients()
    parts.reducer.begin_step(step)
    with phase("forward_backward"), parts.probes.watched(parts, step, batches, micro_ids), parts.balancer.measure():
        if parts.pipeline is None:
            losses = _one_by_one(parts, batches)
        else:
            losses = parts.pipeline.train([device_batch(batch, parts.world.device) for batch in batches], parts.nominal_weight)
    parts.probes.losses(losses)
    tokens = sum(int((batch.targets_bt >= 0).sum()) for batch in batches) if parts.ends_here else 0
    with phase("exchange"):
        parts.reducer.finish()
        grads = parts.weights.collect()
        sync_replicas(parts.weights.locals, parts.weights.placements, parts.mesh)
    return losses, tokens, grads


def _one_by_one(parts: Core, batches: list[Batch]) -> list[Tensor]:
    """Forward and backward passes of one micro-batch after the other; the exchange begins during the last."""
    losses = []
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        parts.laid.sharder.begin_micro_batch(last)
        if last:
            parts.reducer.arm()
        loss = parts.loss(batch)
        (loss * parts.nominal_weight).backward()
        losses.append(loss.detach())
    return losses


def gradient_norm(parts: Core, grads: list[Tensor], limit: float) -> Tensor:
    """Norm of the whole gradient, by which this rank's part is then clipped to `limit` (0: not)."""
    if apart_of(parts.reducer) is not None:
        return _norm_apart(parts, grads, limit)
    if parts.weights.whole_here:
        return clip_grad_norm(grads, limit, note=parts.probes.note)
    return clip_grad_norm(grads, limit, parts.weights.counted(), lambda square: parts.world.sum_(square, "norm"), parts.probes.note)


def _norm_apart(parts: Core, grads: list[Tensor], limit: float) -> Tensor:
    """Clip each node's gradient by its own norm; returns the root mean square of the nodes' norms, so that one that is not finite shows on all."""
    axes, node = parts.layout.complement(("node",)), parts.mesh.axis("node")
    on_node = parts.mesh.axis(*(axis for axis in axes if parts.layout.size(axis) > 1))
    counted = parts.weights.counted(alone=("node",))
    norm = clip_grad_norm(grads, limit, counted, lambda square: on_node.all_reduce(square, "norm"), parts.probes.note)
    return (node.all_reduce(norm.double().square(), "norm") / node.size).sqrt().to(norm.dtype)


def micro_batches(sample_ids: np.ndarray, parts: Core) -> list[np.ndarray]:
    """A rank's sequences, cut into micro-batches."""
    return parts.balancer.micro_batches(sample_ids, parts.micro, parts.shares)


def device_batch(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, targets and document indices of a batch on the device, each (batch, context)."""
    tokens, targets = torch.from_numpy(batch.tokens_bt), torch.from_numpy(batch.targets_bt)
    documents = None if batch.documents_bt is None else torch.from_numpy(batch.documents_bt).to(device, non_blocking=True)
    return tokens.to(device, non_blocking=True), targets.to(device, non_blocking=True), documents


def local_totals(losses: list[Tensor], tokens: int, parts: Core) -> Tensor:
    """This rank's share of the summed loss, of the target tokens, whether it was asked to stop, and whether a command waits."""
    numbers = [tokens / parts.token_copies, float(parts.stop.requested), float(parts.inbox.waits())]
    counts = torch.tensor(numbers, dtype=torch.float64, device=parts.world.device)
    loss = torch.stack(losses).double().sum().view(1) if losses else counts.new_zeros(1)
    return torch.cat([loss / parts.token_copies, counts])


def _correct_weight(parts: Core, grads: list[Tensor], totals: Tensor) -> None:
    """Replace the nominal token count in the gradients by the true one; nothing to do where no target is masked."""
    if parts.config.data.document_mask:
        torch._foreach_mul_(grads, (1.0 / parts.nominal_weight / totals[1].round()).to(grads[0].dtype))


def update(parts: Core, factor: float, step: int) -> None:
    """Take the step of the optimizer at `factor` times its rates, and all that follows from it."""
    parts.optimizer.set_factor(factor)
    parts.balance()  # sums loads over all ranks: first, so that a rank that is lost there leaves the others' state whole
    parts.torn = True
    with parts.probes.updating(step):
        parts.optimizer.step()
    parts.reducer.between.commit()
    if parts.average is not None:
        parts.average.update()
    parts.place_experts(step + 1)


def _blame(parts: Core, step: int, losses: list[Tensor], loss: float, grad_norm: float) -> str:
    """Name the step, rank and sequences whose loss is not finite (every rank takes part)."""
    bad = [i for i, value in enumerate(losses) if not math.isfinite(value.item())]
    first_bad = parts.world.gather_numbers(bad[0] if bad else -1, "blame")
    what = f"step {step}: loss {loss}, gradient norm {grad_norm}"
    ids = parts.plan.sample_ids(step)
    for rank, micro in enumerate(first_bad):
        if micro >= 0:
            culprits = micro_batches(parts.sequences_of(ids, rank), parts)[int(micro)]
            return f"{what}; first in micro-batch {int(micro)} of rank {rank}: {_names(parts, culprits)}"
    return f"{what}; every loss is finite, so the backward pass overflowed in the batch of {_names(parts, ids)}"


def _names(parts: Core, ids: np.ndarray) -> str:
    shown = "; ".join(parts.plan.describe(int(i)) for i in ids[:4])
    return shown + (f"; and {len(ids) - 4} more" if len(ids) > 4 else "")
