"""What a run does by itself when an alert is opened: `alerts.act = "loss_spike=snapshot, divergence=stop"`.

    snapshot     save the state now
    lower_rate   halve optim.lr (and optim.muon_lr) between two steps
    stop         stop after the next step, and save

Commands are carried out between two steps; so there is nothing to do about what ends the steps. Cost: nothing until something happens. When not to
use it: before you have seen the alerts of a kind for some runs, as an action follows a false alarm as it follows a true one.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from penstock.config import UserError, nearest
from penstock.monitor.alerts.kinds import KINDS

Action = Literal["snapshot", "lower_rate", "stop"]
Policy = dict[str, Action]
#: What ends a run's steps, so that no command would be carried out; and a stop saves by itself.
STEPLESS = ("rank_lost", "run_lost", "run_failed", "hang", "non_finite")


def parse_policy(text: str) -> Policy:
    """Kinds of alerts and what to do; raises `UserError`."""
    policy: Policy = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, equals, action = (word.strip() for word in part.partition("="))
        if not equals or kind not in KINDS:
            raise UserError(f"alerts.act = {text!r}: {kind!r} is no kind of alert{nearest(kind, KINDS)}; write KIND=ACTION, separated by commas")
        if kind in STEPLESS:
            raise UserError(f"alerts.act = {text!r}: after {kind} no step comes in which something could be done; leave it out, and see survive.*")
        if action not in get_args(Action):
            known = get_args(Action)
            raise UserError(f"alerts.act = {text!r}: {action!r} is no action{nearest(action, known)}; there are {', '.join(known)}")
        policy[kind] = cast(Action, action)
    return policy
