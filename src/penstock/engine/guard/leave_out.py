"""A batch left out: its step was not applied, and the policy says `skip`; the step is taken again with the batch that follows.

    the step is bad (`judge.py`) → its samples go into `data.skip`, in history and config, as any change between two steps → the same step again

So nothing of the state has to remember it: batches are a function of seed, step and `data.skip`, a run that is resumed from before takes the
change up after the same step, and a run that is begun with the final list trains to the same bits. After `alerts.most` batches one after another it
is not the batch: what is not finite then ends the run as without a policy, and other steps are applied. Cost: a step's time for each batch, and a
line of history. When not to use it: for steps that were applied (`roll_back.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.data import parse_skip
from penstock.engine.guard.judge import BadStep
from penstock.engine.requests.change import agreed_plan, apply
from penstock.models import forget_loads

if TYPE_CHECKING:
    from penstock.engine.build import Parts

#: Says in the history's event of the change which alert it is about.
MARK = "left_out"


def leave_out(parts: Parts, bad: BadStep) -> bool:
    """Leave the batch of a bad step out, if the policy says so; whether the step is to be taken again. All ranks must call it."""
    if parts.judge.policy.get(bad.kind) != "skip" or left_before(parts) >= parts.judge.most:
        return False
    step = parts.progress.step
    ids = parts.plan.sample_ids(step)
    first, last = int(ids[0]), int(ids[-1])
    skip = parse_skip(parts.config.data.skip).plus(first, last)
    forget_loads(parts.decoder)
    parts.torn = False
    parts.progress.left_out += 1
    why = f"{bad}; samples {first} to {last} are left out, and step {step + 1} is taken with those that follow"
    apply(parts, agreed_plan(parts, {"data.skip": skip.text}), "alerts.act", why, **{MARK: bad.kind, "samples": [first, last]})
    parts.journal.event(step, "skip", why)
    parts.journal.say(f"step {step + 1}: {why}")
    return True


def left_before(parts: Parts) -> int:
    """How many batches directly before that of the coming step are left out."""
    first = int(parts.plan.sample_ids(parts.progress.step)[0])
    return parse_skip(parts.config.data.skip).run_before(first) // parts.config.batch.global_
