"""A pipeline schedule as data: for every rank the list of actions it takes in one step, in order.

The model is cut into *stages*, numbered in the order in which data flows; a rank of the pipeline holds one or several of them (its *chunks*):

    loop   stage s on rank s mod p                                          (Narayanan et al., arXiv 2104.04473, section 2.2)
    wave   up the ranks and down again, s = 0 … p-1, p-1 … 0, 0 … p-1, …    (two chunks: the V of Qi et al., arXiv 2405.15362)

An action works on one micro-batch of one stage: F forward, I the gradient of its input, W the gradients of its weights, B both at once. Data
moves by themselves when an action is done: to the next stage after F, to the one before after I or B. What a schedule says about time
follows from `Costs`; what it needs of memory too. Each stage's micro-batch is counted as held from the start of its F to the end of its W (or B).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

Work = Literal["F", "I", "W", "B"]
Wiring = Literal["loop", "wave"]


class Action(NamedTuple):
    """One piece of work: what, on which stage, for which micro-batch."""

    work: Work
    stage: int
    micro: int

    def __str__(self) -> str:
        return f"{self.stage}{self.work}{self.micro}"


@dataclass(frozen=True)
class Schedule:
    """Actions of every rank in order; `rank_of[stage]` says where each stage lives. Whether it can be run, `check_schedule` says."""

    kind: str
    rank_of: tuple[int, ...]
    micro_batches: int
    actions: tuple[tuple[Action, ...], ...]

    @property
    def stages(self) -> int:
        """Stages of the model."""
        return len(self.rank_of)

    @property
    def ranks(self) -> int:
        """Ranks of the pipeline."""
        return len(self.actions)

    @cached_property
    def chunks(self) -> int:
        """Stages on the rank that has most."""
        return max(self.rank_of.count(rank) for rank in range(self.ranks))


@dataclass(frozen=True)
class Costs:
    """What a micro-batch costs, stage by stage, in one unit of time of the caller's choice (seconds where they are measured).

    `transfer[s]` is the time from the end of an action on stage s until its result is there on stage s + 1, and back: one entry less than
    stages; it occupies neither rank, and is not paid between stages of one rank. `memory[s]` is what a micro-batch of stage s holds, in units of
    one rank's share, so that with equal chunks it is 1 / chunks and 1F1B's first rank peaks at the number of ranks.
    """

    forward: tuple[float, ...]
    input_grad: tuple[float, ...]
    weight_grad: tuple[float, ...]
    transfer: tuple[float, ...]
    memory: tuple[float, ...]

    @staticmethod
    def even(ranks: int, chunks: int, forward: float, input_grad: float, weight_grad: float, transfer: float) -> Costs:
        """Equal stages: the times are of one *rank's* share of a micro-batch, which its chunks divide; the transfer is of one hop."""
        n = ranks * chunks
        shares = (forward / chunks, input_grad / chunks, weight_grad / chunks)
        f, i, w = ((share,) * n for share in shares)
        return Costs(f, i, w, (transfer,) * (n - 1), (1.0 / chunks,) * n)

    def of(self, action: Action) -> float:
        """Time that an action takes its rank."""
        work, s, _ = action
        if work == "F":
            return self.forward[s]
        if work == "I":
            return self.input_grad[s]
        return self.weight_grad[s] if work == "W" else self.input_grad[s] + self.weight_grad[s]

    def work_of(self, stages: list[int]) -> float:
        """Time that one micro-batch takes on the given stages together."""
        return sum(self.forward[s] + self.input_grad[s] + self.weight_grad[s] for s in stages)


def wire(ranks: int, chunks: int, wiring: Wiring) -> tuple[int, ...]:
    """The rank of every stage, for `chunks` stages a rank."""
    if wiring == "loop":
        return tuple(range(ranks)) * chunks
    up, down = tuple(range(ranks)), tuple(reversed(range(ranks)))
    return tuple(rank for chunk in range(chunks) for rank in (down if chunk % 2 else up))
