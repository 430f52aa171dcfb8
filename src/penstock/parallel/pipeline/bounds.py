"""What no schedule can beat: least memory, makespan between barriers, and time per step without them, for any costs, wiring and memory cap.

For rank r, whose first and last stages are a and b, of m micro-batches (p ranks, n stages; F, I, W and c as in `Costs`, c only between ranks):

    head   no action before a micro-batch has come to stage a:                           sum of F + c before a
    idle   from its first forward, on a, to its first input gradient, on b, a micro-batch goes through the F of a … n-1 and the I of n-1 … b+1,
           and all that time the rank can do nothing but forwards, only as many as memory holds: nothing is given back before its first W
    tail   after its last input gradient, on a, the I below a and W of stage 0 follow, while the rank has only W's left, at most of what memory held

    makespan >= head + work + idle + max(0, tail - W's left), the largest over the ranks
    period >= work + idle, and for ranks q before r (first stages a' < a): the F of a' … a-1, then all of r's, then the I of a-1 … a' and W of a',
              less the W's that r may have left: q's step lasts from before r's begins to after r's last input gradient

Without a cap and with equal chunks, v a rank, the first is (p-1)(F/v + c) + m (F+I+W). With 1F1B's memory, p micro-batches, "idle" is what
costs: the first micro-batch goes through p F of forwards alone before anything is given back, and p micro-batches in hand are p F of work. So every
hop of a transfer and the input gradients of the last sweep, at least (p-1) I/v on some rank, are idle, however good the schedule.
These are proofs of what cannot be, not promises: the bound may itself be out of reach. They cost a few additions.
"""

from __future__ import annotations

from itertools import accumulate

from penstock.parallel.pipeline.schedule import Costs

TINY = 1e-9


def least_memory(costs: Costs, rank_of: tuple[int, ...]) -> float:
    """The least memory, in units of `Costs.memory`, that every rank must be allowed: one micro-batch through all stages of the fullest rank."""
    return max(sum(costs.memory[s] for s in own) for own in _owned(rank_of))


def makespan_bound(costs: Costs, rank_of: tuple[int, ...], micro_batches: int, cap: float | None = None) -> float:
    """The time that a step between two barriers takes at least; `cap` as in `synthesise`."""
    bounds = _Bounds(costs, rank_of, micro_batches, cap)
    return max(bounds.path(0, rank) + bounds.span[rank] + max(0.0, bounds.tail(0, rank)) for rank in range(len(bounds.own)))


def period_bound(costs: Costs, rank_of: tuple[int, ...], micro_batches: int, cap: float | None = None) -> float:
    """The time per step that is needed at least without barriers; `cap` as in `synthesise`."""
    bounds = _Bounds(costs, rank_of, micro_batches, cap)
    firsts = [own[0] for own in bounds.own]
    pairs = [
        bounds.path(a, rank) + bounds.span[rank] + bounds.tail(a, rank) for rank in range(len(firsts)) for a in firsts if a < firsts[rank]
    ]
    return max(bounds.span + pairs)


class _Bounds:
    """Sums along the pipeline; `span[rank]` is a rank's work and the idle time that memory forces on it."""

    def __init__(self, costs: Costs, rank_of: tuple[int, ...], micro_batches: int, cap: float | None) -> None:
        self.costs, self.micros, self.own = costs, micro_batches, _owned(rank_of)
        self.cap = float("inf") if cap is None else cap * len(self.own)
        hops = [c if a != b else 0.0 for c, a, b in zip(costs.transfer, rank_of, rank_of[1:])] + [0.0]
        self.forward = [0.0, *accumulate(f + hop for f, hop in zip(costs.forward, hops))]  # start of a stage's forward after stage 0's
        self.back = [0.0, *accumulate(i + hop for i, hop in zip(costs.input_grad, hops))]
        self.hops = hops
        self.span = [micro_batches * costs.work_of(own) + self._idle(own) for own in self.own]

    def _idle(self, own: list[int]) -> float:
        """Time between a rank's first forward and its first input gradient in which memory lets it do nothing."""
        below = self.back[-1] - self.back[own[-1] + 1] + self.hops[own[-1]]
        return max(0.0, self.forward[-1] - self.forward[own[0]] + below - self._held(own, self.costs.forward))

    def path(self, start: int, rank: int) -> float:
        """Time for a micro-batch from the start of stage `start` to the start of the rank's first stage."""
        return self.forward[self.own[rank][0]] - self.forward[start]

    def tail(self, stage: int, rank: int) -> float:
        """Time from the rank's last input gradient to the end of `stage`, before it, less what the rank may still have to do; may be negative."""
        first = self.own[rank][0]
        after = self.back[first] - self.back[stage] + self.costs.weight_grad[stage] if stage < first else 0.0
        return after - self._held(self.own[rank], self.costs.weight_grad)

    def _held(self, own: list[int], times: tuple[float, ...]) -> float:
        """The most time that a rank can spend on one action each of what its memory holds."""
        memory = self.costs.memory
        if len({memory[s] for s in own}) == 1 and memory[own[0]] > 0 and self.cap < float("inf"):
            count = int(self.cap / memory[own[0]] + TINY)
            longest = sorted((times[s] for s in own for _ in range(min(self.micros, count))), reverse=True)
            return sum(longest[:count])
        room, total = self.cap, 0.0
        for s in sorted(own, key=lambda s: memory[s] / times[s] if times[s] else float("inf")):
            part = min(float(self.micros), room / memory[s]) if memory[s] else float(self.micros)
            total += part * times[s]
            room -= part * memory[s]
        return total


def _owned(rank_of: tuple[int, ...]) -> list[list[int]]:
    """The stages of every rank, in order."""
    return [[s for s, rank in enumerate(rank_of) if rank == own] for own in range(max(rank_of) + 1)]
