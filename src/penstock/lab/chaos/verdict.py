"""Whether a run survived its faults: its final weights against the undisturbed run's, and what its history tells of each fault.

With as many ranks as before the weights must be the same bit for bit; where ranks were lost for good, ‖difference‖ / ‖weights‖ of every tensor must
be below `CLOSE`, as sums in another order round otherwise. A fault is told of if the history has an event of its kind after it struck and before the
next did: a recovery (and its failure), a resumption, or of a full disk an alert, unless another fault ended the attempt before it was given up.

Seconds are the longest time without a finished step after the strike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from penstock.engine import compare_snapshots
from penstock.lab.chaos.kinds import KINDS, STEP
from penstock.lab.chaos.plan import Fault
from penstock.lab.chaos.runs import Ended
from penstock.store import Event, read_history
from penstock.store.snapshots.naming import newest_snapshot

#: Largest relative difference of weights in float32 where sums are in another order.
CLOSE = 1e-5
#: Longest time, seconds, that a snapshot is tried to be written on a full disk before it is given up.
TRIED_S = 15.0


@dataclass(frozen=True)
class Judged:
    """One fault and what became of it; `why` says what is wrong, or why it was skipped."""

    fault: Fault
    run: int
    struck: bool
    skipped: bool
    how: str
    seconds: float
    again: int
    told: bool
    survived: bool
    why: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        seen = {name: getattr(self, name) for name in ("run", "struck", "skipped", "how", "seconds", "told", "survived", "why")}
        return self.fault.as_dict() | seen | {"steps_again": self.again}


@dataclass(frozen=True)
class Weights:
    """Final weights against the undisturbed run's: the same, or how far the furthest tensor is apart; `right` as far as is asked."""

    same: bool
    relative: float
    right: bool

    def text(self) -> str:
        """In words."""
        return "the same weights, bit for bit" if self.same else f"weights {self.relative:.1e} apart{'' if self.right else ', which is WRONG'}"


def weigh(ended: Ended, reference: Ended, exactly: bool) -> Weights:
    """Hold the final weights of a run against those of another; `exactly`: bit for bit, else to `CLOSE`."""
    if ended.summary.get("weights_digest") == reference.summary["weights_digest"]:
        return Weights(True, 0.0, True)
    if ended.summary.get("step") != reference.summary["step"]:
        return Weights(False, float("inf"), False)
    apart = compare_snapshots(newest_snapshot(reference.run), newest_snapshot(ended.run), weights=True).weights or []
    relative = max((told.relative for told in apart if not told.name.startswith(("optim.", "exchange.", "ema."))), default=float("inf"))
    return Weights(False, relative, not exactly and relative <= CLOSE)


def seconds_without_step(fault: Fault, ended: Ended) -> float:
    """The longest time without a finished step from the strike on, up to the next strike."""
    struck = ended.marks[str(fault.number)]["time"]
    others = [mark["time"] for name, mark in ended.marks.items() if not name.endswith("-then") and mark["time"] > struck]
    end = min(others, default=float("inf"))
    times = [moment for moment in ended.times if struck < moment <= end]
    return max((after - before for before, after in pairwise([struck, *times])), default=0.0)


def judge(number: int, faults: Sequence[Fault], ended: Ended, weights: Weights) -> list[Judged]:
    """What became of each fault of run `number`."""
    history = read_history(ended.run)
    windows = _windows(faults, ended, history.events)
    wrong = ended.defect or ("" if weights.right else "the final weights are not those of the undisturbed run")
    wrong = wrong or (f"the history is damaged: {history.damage[0]}" if history.damage else "")
    return [_judged(number, fault, ended, windows.get(fault.number, []), history.events, wrong) for fault in faults]


def _judged(number: int, fault: Fault, ended: Ended, events: list[Event], everything: list[Event], wrong: str) -> Judged:
    mark = ended.marks.get(str(fault.number))
    if mark is None or mark["skipped"]:
        why = mark["skipped"] if mark else f"it never struck{'; ' * bool(wrong)}{wrong}"
        return Judged(fault, number, False, mark is not None, "", 0.0, 0, False, False, why)
    tells = KINDS[fault.kind].tells
    if tells == "alert":
        events = [event for event in everything if event.kind == "alert" and event.step == fault.step]
    told = _is_told(fault, events, ended)
    half = f"the second rank was not struck in '{fault.then}'" if fault.then and f"{fault.number}-then" not in ended.marks else ""
    why = wrong or half or ("" if told else f"the history has no {tells} of it")
    again = sum(_again(fault, event) for event in [event for event in events if event.kind in ("recovery", "resume")][:1])
    return Judged(fault, number, True, False, _how(tells, events), seconds_without_step(fault, ended), again, told, not why, why)


def _windows(faults: Sequence[Fault], ended: Ended, events: list[Event]) -> dict[int, list[Event]]:
    """The events between each fault's strike and the next one's, by the fault's number."""
    struck = sorted((mark["seq"], fault.number) for fault in faults if (mark := ended.marks.get(str(fault.number))) and not mark["skipped"])
    ends = [seq for seq, _ in struck[1:]] + [max((event.seq for event in events), default=0)]
    return {number: [event for event in events if seq < event.seq <= end] for (seq, number), end in zip(struck, ends)}


def _is_told(fault: Fault, events: list[Event], ended: Ended) -> bool:
    kinds, tells = {event.kind for event in events}, KINDS[fault.kind].tells
    if tells == "recovery":
        return {"failure", "recovery"} <= kinds
    if tells == "alert" and not kinds:  # the snapshot that could not be written may have ended with its generation
        struck = ended.marks[str(fault.number)]["time"]
        return any(struck < mark["time"] < struck + TRIED_S for mark in ended.marks.values())
    return not tells or tells in kinds


def _how(tells: str, events: list[Event]) -> str:
    """What was done about a fault, in the words of the history."""
    words = []
    for event in events:
        if event.kind == "recovery":
            words.append(event.text.removeprefix(f"{event.data['recovery']['cause']}; ").rpartition("; ")[0])
        elif event.kind == tells:
            words.append(event.text)
    return "; then ".join(dict.fromkeys(words)) or ("" if tells == "recovery" else "went on")


def _again(fault: Fault, recovery: Event) -> int:
    """Steps computed again: those between the state taken up and the one that was lost, and the step in which the fault struck."""
    return max(0, fault.step + (fault.phase in STEP) - (recovery.step or 0))
