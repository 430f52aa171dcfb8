"""Steps without a barrier: update first, check afterwards, take it back exactly if the check fails.

The gradient's global norm decides whether a step is clipped or refused, and it is complete only when every rank of the pipeline has done its last
micro-batch. Waiting for it costs each rank its idle time at both ends of every step, which no schedule can fill. Qi et al. (arXiv 2401.10241,
section 4) update at once and validate later. Here:

    step k        gradients; the sum of loss, tokens and squares is started; update as if nothing were clipped; the state before it is kept
    step k + 1    gradients; then the sum of step k is read:
                  finite and below the limit   step k counts
                  else                         the kept state comes back, bit for bit, and step k is taken again, with the barrier

so the results are those of the barrier, always. A step is updated at once only if the norm before it was well below the limit (`NEAR`), else it
waits for its own sum; and not where the loop needs the state to be settled (evaluation, snapshot, the last step).

Cost: a copy of weights, moments and averages (12 bytes a parameter for AdamW), written every step; two steps' time when a check fails. When not
to use it: with one rank, or where most steps are clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from penstock.engine.step import StepResult, gradients, local_totals, take_step, update
from penstock.optim import lr_factor
from penstock.optim.clip import SMALL, part_norms, scale_to

if TYPE_CHECKING:
    from penstock.engine.build import Core

#: A step whose predecessor's norm was above this share of the limit waits for its own.
NEAR = 0.8


@dataclass
class _Pending:
    """A step that was updated and is still to be checked: the sum under way of its numbers and squares; or what came of it."""

    sums: Tensor
    work: dist.Work
    factor: float
    result: StepResult | None = None


class LateCheck:
    """Takes the steps of a run whose `pipeline.check` is 'after'."""

    def __init__(self) -> None:
        self._pending: _Pending | None = None
        self._norm = math.inf  # of the last step that counts
        self._kept: dict[str, Tensor] = {}
        #: Steps that were taken back so far.
        self.taken_back = 0

    @property
    def ahead(self) -> bool:
        """Whether the state is a step further than its last result."""
        return self._pending is not None

    def next_result(self, parts: Core, step: int, settle: bool) -> StepResult:
        """The checked result of `step`; the step after it may have been updated too, unless `settle`."""
        if self._pending is None:
            if settle or not self._likely(parts):
                return self._remember(take_step(parts, step))
            self._update(parts, step, *self._gradients(parts, step))
        if settle:
            return self._check(parts) or self._again(parts, step)
        ahead = self._gradients(parts, step + 1)
        result = self._check(parts)
        if result is None:
            return self._again(parts, step)
        if not result.stop:
            self._update(parts, step + 1, *ahead)
        return result

    def _likely(self, parts: Core) -> bool:
        return parts.config.optim.clip == 0 or self._norm < NEAR * parts.config.optim.clip

    def _gradients(self, parts: Core, step: int) -> tuple[list[Tensor], Tensor, dist.Work]:
        """Compute the gradients of a step, and start the sum by which it will be checked."""
        losses, tokens, grads = gradients(parts, step)
        norms = part_norms(parts.weights.counted(), grads[0])
        parts.probes.note(norms)
        square = norms.norm().double().square()
        sums = torch.cat([local_totals(losses, tokens, parts), square.view(1)])
        return grads, sums, parts.world.axis.start_all_reduce(sums, "totals")

    def _update(self, parts: Core, step: int, grads: list[Tensor], sums: Tensor, work: dist.Work) -> None:
        """Keep the state, and update it without having read the sum, if it is likely to be well."""
        pending = _Pending(sums, work, lr_factor(parts.config.optim, parts.config.train.steps, step))
        if self._likely(parts):
            self._keep(parts.tensors())
        else:
            pending.result = self._read(parts, pending)
            if not (math.isfinite(pending.result.loss) and math.isfinite(pending.result.grad_norm)):
                return  # taken again, it will say which sequences did it
            scale_to(grads, sums[-1].sqrt().to(grads[0].dtype), parts.config.optim.clip)
        with parts.timer.phase("optimizer"):
            update(parts, pending.factor, step)
        self._pending = pending

    def _check(self, parts: Core) -> StepResult | None:
        """What came of the pending step; None if it must be taken back."""
        pending, self._pending = self._pending, None
        assert pending is not None
        result, limit = pending.result, parts.config.optim.clip
        if result is None:
            result = self._read(parts, pending)
            finite = math.isfinite(result.loss) and math.isfinite(result.grad_norm)
            if not finite or (limit and result.grad_norm + SMALL > limit) or parts.judge.objects(result.loss, result.grad_norm):
                return None
        return self._remember(result)

    def _read(self, parts: Core, pending: _Pending) -> StepResult:
        with parts.timer.phase("check"):
            pending.work.wait()
            loss_sum, n_tokens, stop, asked, square = pending.sums.tolist()
        norm = math.sqrt(square) if square >= 0 else math.nan
        return StepResult(loss_sum / max(n_tokens, 1), round(n_tokens), norm, pending.factor, stop > 0, asked > 0)

    def _again(self, parts: Core, step: int) -> StepResult:
        """Bring back the state before `step`, and take it with the barrier."""
        self.taken_back += 1
        parts.notes["steps_taken_back"] = float(self.taken_back)
        live = parts.tensors()
        with torch.no_grad():
            torch._foreach_copy_([live[name] for name in self._kept], list(self._kept.values()))
        return self._remember(take_step(parts, step))

    def _keep(self, live: dict[str, Tensor]) -> None:
        with torch.no_grad():
            if self._kept.keys() != live.keys() or any(self._kept[name].shape != tensor.shape for name, tensor in live.items()):
                self._kept = {name: torch.empty_like(tensor) for name, tensor in live.items()}
            torch._foreach_copy_(list(self._kept.values()), [tensor.detach() for tensor in live.values()])

    def _remember(self, result: StepResult) -> StepResult:
        self._norm = result.grad_norm
        return result


def next_result(parts: Core, step: int, settle: bool) -> StepResult:
    """Advance the state by `step` and return its result; where checks come late the state may already be a step further, unless `settle`."""
    if parts.late is None or not parts.tuner.settled:
        return take_step(parts, step)
    return parts.late.next_result(parts, step, settle)
