"""Silent corruption: replicas that should hold the same bits and do not, found every `survive.compare` steps.

A flipped bit in memory, a wrong product, a driver's fault: nothing raises, and a replica trains on with other weights (6 of the 419 unexpected
interruptions of Llama 3's training, arXiv 2407.21783, table 5). All ranks that hold the same piece of the state (weights, moments, averages) add up
its bits as whole numbers,

    sum of its elements' bits   modulo 2^64,

which any one flipped bit changes, and gather these sums. Who differs from the majority of a piece's holders ends with an error, and the run goes on
without it as after any death (`survive/`). Where no majority says who is right, as between two, all ranks end: resuming goes back to a snapshot.

Cost: one read of the state, and 8 bytes a tensor between replicas. What was wrong before the comparison has gone into everybody's gradients
meanwhile: compare often, or expect what a noisy step does. When not to use it: where nothing has a replica. It sees neither wrong data nor an error
that all replicas share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penstock.comm import Axis
from penstock.config import SharedError
from penstock.engine.state import is_withheld
from penstock.engine.transition import StateMap

if TYPE_CHECKING:
    from penstock.engine.build import Parts

#: The whole numbers whose bits are those of an element of so many bytes.
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FINE, ODD, UNDECIDED = 0.0, 1.0, 2.0


class Corrupt(RuntimeError):
    """This rank holds other bits than the majority of its replicas."""


def compare_replicas(parts: Parts) -> None:
    """Compare the state of the current step with its replicas', if that is due; all ranks must call it. Raises `Corrupt` on ranks that are in the
    minority, and `SharedError` on all where nobody can say who is right.
    """
    every, step = parts.config.survive.compare, parts.progress.step
    if not every or step % every or parts.world.size == 1:
        return
    with parts.timer.phase("compare"):
        name, verdict = judge(parts)
        verdicts = parts.world.gather_numbers(verdict, "compare")
    found = [rank for rank, verdict in enumerate(verdicts) if verdict != FINE]
    if UNDECIDED in verdicts:
        names = ", ".join(map(str, found))
        raise SharedError(
            f"after step {step} replicas of the state on ranks {names} hold different bits{_first(name)}, and no majority says which is right: "
            "something corrupts memory or computes wrongly there; test these devices, and go on from the newest snapshot by "
            f"`penstock resume {parts.run.path}`"
        )
    if verdict == ODD:
        raise Corrupt(f"after step {step} this rank holds other bits than its replicas{_first(name)}: its memory or its arithmetic is at fault")


def judge(parts: Parts) -> tuple[str, float]:
    """The first tensor in which this rank differs from its replicas, and whether it is in the minority; all ranks must call it."""
    placements, tensors = StateMap.of(parts).placements, parts.tensors()
    together: dict[str, tuple[Axis, list[str]]] = {}
    for name in [name for name in tensors if not is_withheld(name)]:  # each node withholds something else
        axis = parts.mesh.replicas(placements[name])
        together.setdefault(axis.name, (axis, []))[1].append(name)
    worst, first = FINE, ""
    for axis, names in together.values():
        sums = torch.stack([bit_sum(tensors[name]) for name in names]).to(parts.world.device)
        for name, held in zip(names, axis.all_gather(sums, 0, "compare").view(axis.size, -1).T.tolist()):
            verdict = verdict_of(held, held[axis.index])
            first = first or name * (verdict != FINE)
            worst = max(worst, verdict)
    return first, worst


def verdict_of(held: Sequence[int], own: int) -> float:
    """What the sums of all holders of a piece say of the one whose sum is `own`."""
    (common, count), *others = Counter(held).most_common()
    if not others:
        return FINE
    return UNDECIDED if 2 * count <= len(held) else ODD if own != common else FINE


def bit_sum(tensor: Tensor) -> Tensor:
    """Sum of the bits of a tensor's elements, taken as whole numbers; int64 scalar."""
    words = tensor.detach().contiguous().view(-1)
    return (words.to(torch.uint8) if words.dtype == torch.bool else words.view(WORDS[words.element_size()])).sum(dtype=torch.int64)


def _first(name: str) -> str:
    return f" (first in {name})" if name else ""
