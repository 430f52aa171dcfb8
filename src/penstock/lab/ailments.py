"""Ailments planted in real training, to see whether the monitor tells of them: slow ranks, damaged batches, leaks, and what else goes wrong.

    PENSTOCK_LISTENER=penstock.lab.ailments PENSTOCK_AILMENTS="slow:1:150:0.05 poison:0:220 leak:1:60:400000" penstock train … --nproc 2

Each is KIND:RANK:STEP[:SIZE], with * for all ranks; what begins there and lasts, but where it says *once*:

    slow       sleeps SIZE seconds in each step's computation         leak      keeps SIZE bytes a step
    poison     reads random tokens, once                              repeat    reads the sequences of the step before again and again
    nan        its loss is NaN, once                                  spike     its loss and gradient are SIZE times what they are, once
    explode    gradients are SIZE times what they are                 vanish    the same
    rate       the learning rate is SIZE times what it is             experts   half of the experts get no tokens any more
    stall      the network stands still for SIZE seconds, once        hang      computes nothing for SIZE seconds, once
    clock      the host's clock is SIZE seconds ahead

They act where the heart tells of a phase (`engine/guard/heart.py`), and in what the rank computes with (`lab/planting.py`); nothing of a run knows of
them. Cost: none where the variable is not set. When not to use it: for ranks that die (`lab/chaos`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from penstock.config import UserError, nearest
from penstock.data import Batch

VARIABLE = "PENSTOCK_AILMENTS"
#: Kinds, and whether each takes one step only.
KINDS = {
    "slow": False, "leak": False, "poison": True, "repeat": False, "nan": True, "spike": True, "explode": False, "vanish": False, "rate": False,
    "experts": False, "stall": True, "hang": True, "clock": False,
}  # fmt: skip
#: Those that mean nothing without a size.
SIZED = ("slow", "leak", "spike", "explode", "vanish", "rate", "stall", "hang", "clock")


@dataclass(frozen=True)
class Ailment:
    """Something wrong with a rank (None: all) from a step on; `size` in seconds, bytes or as a factor."""

    kind: str
    rank: int | None
    step: int
    size: float

    def ails(self, rank: int, step: int) -> bool:
        """Whether a rank has it in a step."""
        return self.rank in (None, rank) and (step == self.step if self.once else step >= self.step)

    @property
    def once(self) -> bool:
        """Whether it takes one step only."""
        return KINDS[self.kind]


def parse(text: str) -> list[Ailment]:
    """Ailments from the variable's words; raises `UserError`."""
    return [_ailment(word) for word in text.split()]


def _ailment(word: str) -> Ailment:
    kind, *rest = word.split(":")
    if kind not in KINDS:
        raise UserError(f"{VARIABLE}: {word!r} is no ailment{nearest(kind, KINDS)}; there are {', '.join(KINDS)}")
    try:
        rank, step, *size = rest
        if len(size) > 1 or (kind in SIZED and not size):
            raise ValueError
        return Ailment(kind, None if rank == "*" else int(rank), int(step), float(size[0]) if size else 0.0)
    except ValueError:
        needs = "with a size" if kind in SIZED else "whole numbers"
        raise UserError(f"{VARIABLE}: {word!r} is not KIND:RANK:STEP[:SIZE], {needs}; such as slow:1:150:0.05") from None


class Patient:
    """What ails this process's rank, whichever that is at the time."""

    def __init__(self, ailments: Sequence[Ailment]) -> None:
        self._ailments = list(ailments)
        self._kept: list[bytes] = []
        self._began = -1
        self._last: Batch | None = None
        #: The step under way.
        self.step = 1

    def has(self, kind: str) -> float | None:
        """The size of an ailment that this rank has now; None if it has not."""
        rank = int(os.environ.get("RANK", "0"))
        return next((one.size for one in self._ailments if one.kind == kind and one.ails(rank, self.step)), None)

    def hear(self, generation: int, step: int, phase: str) -> None:
        """A phase begins, after `step` steps."""
        again = phase == "data" and self._began == step
        self._began = step if phase == "data" else self._began
        self.step = step + 1
        self._ailments = [one for one in self._ailments if not one.once or one.step >= self.step + again]  # a step taken again finds none
        if phase != "forward_backward":
            return
        for kind in ("slow", "hang"):
            if (seconds := self.has(kind)) is not None:
                time.sleep(seconds)
        if (size := self.has("leak")) is not None:
            self._kept.append(os.urandom(int(size)))

    def read(self, batch: Batch) -> Batch:
        """A batch of training as this rank reads it now."""
        if self.has("repeat") is not None and self._last is not None and self._last.tokens_bt.shape == batch.tokens_bt.shape:
            return self._last
        self._last = batch
        if self.has("poison") is None:
            return batch
        random = np.random.default_rng(1)
        tokens = random.integers(0, 256, (batch.tokens_bt.shape[0], batch.tokens_bt.shape[1] + 1))
        return replace(batch, tokens_bt=tokens[:, :-1].copy(), targets_bt=np.where(batch.targets_bt >= 0, tokens[:, 1:], batch.targets_bt))


patient = Patient(parse(os.environ.get(VARIABLE, "")))
hear = patient.hear
if os.environ.get(VARIABLE):
    from penstock.lab.planting import plant

    plant(patient)
