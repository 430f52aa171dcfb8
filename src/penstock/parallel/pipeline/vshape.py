"""Schedules over a V: two chunks a rank, up the ranks and down again, so that the last stage lies beside the first.

Since a rank's early chunk holds its activations long and its late chunk briefly, and the more of one the less of the other, all ranks need the same
memory (Qi et al., arXiv 2405.15362, section 3). ZB-V (arXiv 2401.10241, section 6) and DualPipeV (arXiv 2412.19437, cut in half) are lists of
phases. V-Half and V-Min repeat a *building block*: where micro-batch 0's F and I of both chunks begin on every rank, each pass of the V at its own
number of slots from rank to rank; micro-batch j follows 6 j slots later, as a rank has six actions for each. Weight gradients then fill what would
be idle if all actions took the same time, and are done at once where the block's memory would be passed.
"""

from __future__ import annotations

from collections import Counter
from itertools import product

from penstock.parallel.pipeline.check import needs
from penstock.parallel.pipeline.schedule import Action

#: Actions that a rank of a V does for one micro-batch: F, I and W of two chunks.
SLOTS = 6

#: Slots from rank to rank in a block's passes: F up, F down, I up, I down. Half: (2 + 1 + 2 + 1) p slots of life, /6 /2 chunks = p / 2 units.
V_HALF = (2, 1, 2, 1)
V_MIN = (1, 1, 1, 1)


class Phases:
    """A rank's row as it grows: each step names a work and a chunk ('F0'), and takes that chunk's next micro-batch."""

    def __init__(self, ranks: int, rank: int) -> None:
        self.row: list[Action] = []
        self.stages = (rank, 2 * ranks - 1 - rank)
        self.count: Counter[str] = Counter()
        self.owed: list[Action] = []

    def do(self, steps: str, times: int = 1) -> None:
        """Take the steps `times` times; W0 and W1 take the oldest weight gradient owed by that chunk, W the oldest of both, if there is one."""
        for step in steps.split() * max(0, times):
            if step[0] == "W":
                self._weight(step)
                continue
            work, chunk = step[0], int(step[1])
            counter = "F" + step[1] if work == "F" else "B" + step[1]
            action = Action(work, self.stages[chunk], self.count[counter])  # type: ignore[arg-type]
            self.count[counter] += 1
            self.row.append(action)
            if work == "I":
                self.owed.append(Action("W", action.stage, action.micro))

    def _weight(self, step: str) -> None:
        found = next((a for a in self.owed if step == "W" or a.stage == self.stages[int(step[1])]), None)
        if found is not None:
            self.owed.remove(found)
            self.row.append(found)


def zb_v_row(ranks: int, micro_batches: int, rank: int) -> list[Action]:
    """ZB-V on one rank. Fewer than 2 p - 1 micro-batches do not fill it: what is too many is left out."""
    full = max(2 * ranks - 1, micro_batches)
    after = ranks - rank
    phases = Phases(ranks, rank)
    phases.do("F0", 2 * after - 1)
    phases.do("F1 F0", rank)
    phases.do("F1 I1 W1", after)
    phases.do("F0 I0 W0 F1 I1 W1", full - phases.count["F0"])
    phases.do("I0 W0 F1 I1 W1", full - phases.count["F1"])
    phases.do("I0 I1", rank)
    phases.do("I0 W0", after)
    phases.do("W1", full)
    phases.do("W0", full)
    return [action for action in phases.row if action.micro < micro_batches]


def dualpipe_v_row(ranks: int, micro_batches: int, rank: int) -> list[Action]:
    """DualPipeV on one rank, for at least 2 p micro-batches; its pairs of a forward and a backward are done one after the other."""
    after = ranks - 1 - rank
    phases = Phases(ranks, rank)
    phases.do("F0", 2 * after)
    phases.do("F0 F1", rank + 1)
    phases.do("I1 W F1", after)
    phases.do("F0 B1 F1 B0", micro_batches - 2 * ranks + rank + 1)
    phases.do("B1 F1 B0", after)
    for i, chunk in enumerate("10" * (rank + 1)):
        phases.do(("B" if i <= rank else "I") + chunk)
    phases.do("W I0", after)
    phases.do("W", rank + 1)
    return phases.row


def v_half_rows(ranks: int, micro_batches: int, chunks: int) -> list[list[Action]]:
    """V-Half on every rank: about half of 1F1B's memory."""
    return _repeat(ranks, micro_batches, V_HALF)


def v_min_rows(ranks: int, micro_batches: int, chunks: int) -> list[list[Action]]:
    """V-Min on every rank: about a third of 1F1B's memory, the least of a V."""
    return _repeat(ranks, micro_batches, V_MIN)


def _repeat(ranks: int, micro_batches: int, passes: tuple[int, int, int, int]) -> list[list[Action]]:
    """Rows that repeat the building block of the given passes."""
    starts = _block(ranks, passes)
    orders, caps = [], []
    for rank in range(ranks):
        stages = (rank, 2 * ranks - 1 - rank)
        first = (Action("F", stages[0], 0), Action("F", stages[1], 0), Action("I", stages[1], 0), Action("I", stages[0], 0))
        at = starts[rank]
        timed = [(begin + SLOTS * micro, action._replace(micro=micro)) for micro in range(micro_batches) for begin, action in zip(at, first)]
        orders.append([action for _, action in sorted(timed)])
        caps.append(_held(at))
    return _fill(orders, caps, micro_batches)


def _block(ranks: int, passes: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """When F0, F1, I1 and I0 of micro-batch 0 begin on every rank.

    Of the waits at the V's three turns for which no two of them share a slot modulo six on any rank: those of least memory, then the
    longest, which leave results time to arrive.
    """
    up, down, back, home = passes
    top = ranks - 1
    found = []
    for waits in product(range(SLOTS), repeat=3):
        block = []
        for rank in range(ranks):
            f1 = top * up + 1 + waits[0] + (top - rank) * down
            i1 = top * (up + down) + 2 + waits[0] + waits[1] + rank * back
            i0 = top * (up + down + back) + 3 + sum(waits) + (top - rank) * home
            block.append((rank * up, f1, i1, i0))
        if all(len({begin % SLOTS for begin in at}) == 4 for at in block):
            found.append((max(_held(at) for at in block), -sum(waits), block))
    return min(found)[2]


def _held(at: tuple[int, int, int, int]) -> int:
    """Chunk-micro-batches that a rank holds at its peak in the block's steady state, each weight gradient in the first slot free after its I."""
    f0, f1, i1, i0 = at
    free = set(range(SLOTS)) - {begin % SLOTS for begin in at}
    ends = []
    for begin in sorted((i1, i0)):
        slot = next(t for t in range(begin + 1, begin + 1 + SLOTS) if t % SLOTS in free)
        free.discard(slot % SLOTS)
        ends.append(slot + 1)
    w1, w0 = ends if i1 < i0 else reversed(ends)
    return max(sum((t - begin) // SLOTS - (t - end) // SLOTS for begin, end in ((f0, w0), (f1, w1))) for t in range(w0 + w1, w0 + w1 + SLOTS))


def _fill(orders: list[list[Action]], caps: list[int], micro_batches: int) -> list[list[Action]]:
    """Add weight gradients to each rank's F and I: in slots it would idle in if all actions took one, and where it holds its cap."""
    ranks = len(orders)
    last = 2 * ranks - 1
    split = frozenset((stage, micro) for stage in range(2 * ranks) for micro in range(micro_batches))
    done: dict[Action, int] = {}
    rows: list[list[Action]] = [[] for _ in orders]
    at, held = [0] * ranks, [0] * ranks
    owed: list[list[Action]] = [[] for _ in orders]
    slot = 0
    while any(len(row) < 6 * micro_batches for row in rows):
        for rank, order in enumerate(orders):
            action = order[at[rank]] if at[rank] < len(order) else None
            full = action is not None and action.work == "F" and held[rank] >= caps[rank]
            if action is not None and not full and all(done.get(need, slot) < slot for need in needs(action, split, last)):
                at[rank] += 1
            elif owed[rank]:
                action = owed[rank].pop(0)
            else:
                continue
            rows[rank].append(action)
            done[action] = slot
            held[rank] += {"F": 1, "I": 0, "W": -1}[action.work]
            if action.work == "I":
                owed[rank].append(Action("W", action.stage, action.micro))
        slot += 1
    return rows
