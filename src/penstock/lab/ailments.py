"""Ailments planted in real training: a rank that is slow, a batch that is damaged, memory that leaks; to see whether the monitor tells of them.

    PENSTOCK_LISTENER=penstock.lab.ailments PENSTOCK_AILMENTS="slow:1:150:0.05 poison:0:220 leak:1:60:400000" penstock train … --nproc 2

Each is KIND:RANK:STEP[:SIZE], from that step on: `slow` sleeps SIZE seconds in each step's computation, `leak` keeps SIZE bytes a step, and `poison`
gives the rank random tokens for the one step. They act where the heart tells of a phase (`engine/heart.py`), so nothing of a run knows of them.
Cost: none where the variable is not set. When not to use it: for ranks that die or hang (`lab/chaos`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from penstock.data import Batch
from penstock.data.batches import WindowPlan

VARIABLE = "PENSTOCK_AILMENTS"


@dataclass(frozen=True)
class Ailment:
    """Something wrong with a rank from a step on; `size` in seconds or bytes."""

    kind: str
    rank: int
    step: int
    size: float


def parse(text: str) -> list[Ailment]:
    """Ailments from the variable's words."""
    words = [word.split(":") for word in text.split()]
    return [Ailment(kind, int(rank), int(step), float(size[0]) if size else 0.0) for kind, rank, step, *size in words]


class Patient:
    """What ails this process's rank, whichever that is at the time."""

    def __init__(self, ailments: Sequence[Ailment]) -> None:
        self._ailments = ailments
        self._kept: list[bytes] = []
        self._poisoned = False

    def hear(self, generation: int, step: int, phase: str) -> None:
        """A phase begins, after `step` steps."""
        rank = int(os.environ.get("RANK", "0"))
        mine = [one for one in self._ailments if one.rank == rank]
        self._poisoned = any(one.kind == "poison" and one.step == step + 1 for one in mine)
        for one in mine if phase == "forward_backward" else ():
            if one.kind == "slow" and step + 1 >= one.step:
                time.sleep(one.size)
            elif one.kind == "leak" and step + 1 >= one.step:
                self._kept.append(os.urandom(int(one.size)))

    def spoiled(self, batch: Batch) -> Batch:
        """A batch as this rank reads it now."""
        if not self._poisoned:
            return batch
        random = np.random.default_rng(1)
        tokens = random.integers(0, 256, (batch.tokens_bt.shape[0], batch.tokens_bt.shape[1] + 1))
        return replace(batch, tokens_bt=tokens[:, :-1].copy(), targets_bt=np.where(batch.targets_bt >= 0, tokens[:, 1:], batch.targets_bt))


def _fall_ill(patient: Patient) -> None:
    """Let this process read what the patient reads."""
    fetch = WindowPlan.fetch

    def spoiled(plan: WindowPlan, sample_ids: np.ndarray) -> Batch:
        return patient.spoiled(fetch(plan, sample_ids))

    WindowPlan.fetch = spoiled  # type: ignore[assignment, method-assign]


_patient = Patient(parse(os.environ.get(VARIABLE, "")))
hear = _patient.hear
if os.environ.get(VARIABLE):
    _fall_ill(_patient)
