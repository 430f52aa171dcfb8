"""Learning-rate schedules as pure functions of the step.

After a linear warm-up (step s of w gets (s + 1) / w, so the first step is not wasted): cosine to the end (Loshchilov and Hutter,
arXiv 1608.03983, without restarts), warm-up-stable-decay (WSD; Hu et al., "MiniCPM", arXiv 2404.06395) with a linear decay over the last
`optim.decay` of the steps, or constant. The last step's rate is `optim.min_lr` of the peak, the constant schedule's excepted.

Cosine is the safe choice when the number of steps is known; WSD's stable part is the same for every length, so a run can be prolonged
from a snapshot before its decay.
"""

from __future__ import annotations

import math

from penstock.config import OptimSection


def lr_factor(optim: OptimSection, steps: int, step: int) -> float:
    """Share of the peak rate for `step` (from 0) of `steps`, in [0, 1]."""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    if optim.schedule == "constant":
        return 1.0
    start = optim.warmup if optim.schedule == "cosine" else max(optim.warmup, steps - round(optim.decay * steps))
    if step < start or steps <= start:
        return 1.0
    done = (step + 1 - start) / (steps - start)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if optim.schedule == "cosine" else 1 - done
    return optim.min_lr + (1 - optim.min_lr) * shape
