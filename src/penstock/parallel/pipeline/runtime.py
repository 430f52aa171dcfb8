"""Running a schedule: each rank takes its actions in order; what moves between stages follows from them.

Before the first step the schedule is lowered to a program: for every action where its input comes from (nowhere, this rank, a link) and
where its output goes. A receiver learns from the *sender's* actions in which order messages come, so any checked schedule runs without deadlock
and without negotiating. When the last gradient of a stage is there, `Stage.complete` is called at once: exchanges of its gradients begin while
other stages still work.

torch's `_PipelineScheduleRuntime` (`torch_runtime.py` runs schedules on it, as a judge) is not used for training, for what it costs: it reduces
gradients only after a stage's last weight gradient, for all its parameters together; it has no action for an optimizer; it splits a backward
pass by walking the autograd graph, twice for every micro-batch, and computes hand-written operators' weight gradients twice, where
`models/later.py` leaves them; it asks ranks for shapes by sending pickled objects; and a rank that dies leaves its neighbours in an error that
names no message.

Cost: a few dictionary look-ups an action. When not to use it: for one stage, where a loop does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from penstock.comm import Links
from penstock.parallel.pipeline.schedule import Action, Schedule


class Stage(Protocol):
    """What the runtime asks of a stage of the model; tensors are detached, activations of a micro-batch of one shape in all stages."""

    def forward(self, micro: int, x: Tensor | None) -> Tensor | None:
        """Map a micro-batch's activations (None: the stage begins with tokens) to the next stage's (None: it ends with the loss)."""

    def backward(self, micro: int, grad: Tensor | None, split: bool) -> Tensor | None:
        """Map the gradient of the output (None: of the loss) to that of the input; weights' gradients too, unless `split` leaves them."""

    def weights(self, micro: int) -> None:
        """Compute the weights' gradients that `backward` left."""

    def complete(self) -> None:
        """The step's last gradient of this stage is there."""


class Mark(NamedTuple):
    """An executed action, with the clock when its input had come and when it was done."""

    action: Action
    start: Any
    end: Any


class Message(NamedTuple):
    """What moves between stages: the output of `work` on a stage for a micro-batch."""

    work: str
    stage: int
    micro: int

    def __str__(self) -> str:
        what = "the activations" if self.work == "F" else "the gradient"
        return f"{what} of stage {self.stage}, micro-batch {self.micro}"


class _Line(NamedTuple):
    """A line of a rank's program; `source` and `target` are ranks of the pipeline, None where nothing comes or goes."""

    action: Action
    take: Message | None
    source: int | None
    give: Message | None
    target: int | None
    completes: bool


class Runtime:
    """One rank's part of a schedule, to be run step after step."""

    def __init__(self, schedule: Schedule, rank: int, links: Links, stages: Mapping[int, Stage], empty: Callable[[Message], Tensor]) -> None:
        """`schedule` must have passed the checker; `stages` are those of this rank, `empty` makes room for a message."""
        self.schedule, self.rank, self.links, self.stages, self._empty = schedule, rank, links, stages, empty
        self._program = lower(schedule, rank)
        self._coming = {source: coming(schedule, source, rank) for source in links.receivers}
        self.clock: Callable[[], Any] = time.perf_counter

    def run(self) -> list[Mark]:
        """Take one step; returns what was done and when, by `clock`."""
        for source, receiver in self.links.receivers.items():
            receiver.expect(self._coming[source], self._empty)
        here: dict[Message, Tensor] = {}
        clock, rank, receivers, senders = self.clock, self.rank, self.links.receivers, self.links.senders
        marks: list[Mark] = []
        for action, take, origin, give, target, completes in self._program:
            came = None
            if take is not None:
                came = here.pop(take) if origin == rank else receivers[origin].take(take)  # type: ignore[index]
            start = clock()
            result = self._act(action, came)
            marks.append(Mark(action, start, clock()))
            if give is not None:
                assert result is not None, f"{action} gave nothing to send on"
                if target == rank:
                    here[give] = result
                else:
                    senders[target].send(result.contiguous(), give)  # type: ignore[index]
            if completes:
                self.stages[action.stage].complete()
        for sender in senders.values():
            sender.finish()
        return marks

    def _act(self, action: Action, came: Tensor | None) -> Tensor | None:
        stage = self.stages[action.stage]
        if action.work == "F":
            return stage.forward(action.micro, came)
        if action.work == "W":
            stage.weights(action.micro)
            return None
        return stage.backward(action.micro, came, action.work == "I")


def lower(schedule: Schedule, rank: int) -> list[_Line]:
    """A rank's program: its actions with what each takes and gives."""
    actions = schedule.actions[rank]
    last = {action.stage: index for index, action in enumerate(actions) if action.work in ("W", "B")}
    return [_line(schedule, action, last.get(action.stage) == index) for index, action in enumerate(actions)]


def coming(schedule: Schedule, source: int, rank: int) -> list[Message]:
    """What rank `source` sends to `rank`, in order."""
    lines = (_line(schedule, action, False) for action in schedule.actions[source]) if source != rank else ()
    return [line.give for line in lines if line.give is not None and line.target == rank]


def _line(schedule: Schedule, action: Action, completes: bool) -> _Line:
    work, stage, micro = action
    rank_of, end = schedule.rank_of, schedule.stages - 1
    take: Message | None = None
    give: Message | None = None
    source: int | None = None
    target: int | None = None
    if work == "F":
        if stage > 0:
            take, source = Message("F", stage - 1, micro), rank_of[stage - 1]
        if stage < end:
            give, target = Message("F", stage, micro), rank_of[stage + 1]
    elif work in ("I", "B"):
        if stage < end:
            take, source = Message("I", stage + 1, micro), rank_of[stage + 1]
        if stage > 0:
            give, target = Message("I", stage, micro), rank_of[stage - 1]
    return _Line(action, take, source, give, target, completes)


def link_pairs(schedule: Schedule) -> list[tuple[int, int]]:
    """Pairs (from, to) of ranks between which something moves, ascending."""
    hops = set(zip(schedule.rank_of, schedule.rank_of[1:]))
    return sorted({pair for a, b in hops if a != b for pair in ((a, b), (b, a))})
