"""What a run does by itself about a fault: `alerts.act = "loss_spike=roll_back, non_finite=skip, straggler=exclude"`.

    snapshot     save the state now
    lower_rate   multiply optim.lr (and optim.muon_lr) by alerts.rate_factor between two steps
    stop         stop after the next step, and save
    skip         do not apply a step that is not finite or far above what was usual, and leave its batch out (`engine/guard/judge.py`)
    roll_back    go on from the newest snapshot before the fault began, and leave out what was read since then
    exclude      go on without the rank that the alert names

All but `skip` are carried out between two steps; so there is nothing to do about what ends the steps. Cost: nothing until something happens. When not
to use it: before you have seen the alerts of a kind for some runs, as an action follows a false alarm as it follows a true one.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from penstock.config import UserError, nearest
from penstock.monitor.alerts.kinds import KINDS

Action = Literal["snapshot", "lower_rate", "stop", "skip", "roll_back", "exclude"]
Policy = dict[str, Action]
#: What ends a run's steps, so that no command would be carried out; and a stop saves by itself.
STEPLESS = ("rank_lost", "run_lost", "run_failed", "hang", "non_finite")
#: Kinds that a step knows of itself before it is applied, and those whose alerts name a rank that can be done without.
IN_STEP = ("non_finite", "gradient_explosion", "loss_spike")
OF_RANK = ("straggler", "memory_leak")


def parse_policy(text: str) -> Policy:
    """Kinds of alerts and what to do; raises `UserError`."""
    policy: Policy = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, equals, action = (word.strip() for word in part.partition("="))
        if not equals or kind not in KINDS:
            raise UserError(f"alerts.act = {text!r}: {kind!r} is no kind of alert{nearest(kind, KINDS)}; write KIND=ACTION, separated by commas")
        if action not in get_args(Action):
            known = get_args(Action)
            raise UserError(f"alerts.act = {text!r}: {action!r} is no action{nearest(action, known)}; there are {', '.join(known)}")
        if why := _cannot(kind, action):
            raise UserError(f"alerts.act = {text!r}: {why}")
        policy[kind] = cast(Action, action)
    return policy


def _cannot(kind: str, action: str) -> str:
    """Why an action cannot be done about a kind; empty if it can."""
    if action == "skip" and kind not in IN_STEP:
        return f"{kind} is found when its step has been applied; skip is for {', '.join(IN_STEP)}, roll_back for others"
    if action == "exclude" and kind not in OF_RANK:
        return f"{kind} is no fault of one rank; exclude is for {', '.join(OF_RANK)}"
    in_step = kind == "non_finite" and action in ("skip", "roll_back")
    if kind in STEPLESS and not in_step:
        can = "skip or roll_back, or leave it out" if kind == "non_finite" else "leave it out"
        return f"after {kind} no step comes in which something could be done; {can}, and see survive.*"
    return ""
