"""The numbers of one step, on the device until somebody who has waited for the step reads them.

Probes add scalars and vectors with the names of their metrics; `finish` packs what has come so far into one vector, on the device and without
waiting, and `fetch` brings all such vectors over; what metrics they make, another thread may work out. So a step costs one or two small copies,
however many numbers it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

#: Turns the numbers of a group, float64, into the metrics' values.
Finish = Callable[[np.ndarray], np.ndarray]


@dataclass
class _Group:
    """Numbers that lie together in a packed vector, and the metrics that they become."""

    names: tuple[str, ...]
    size: int
    become: Finish | None


@dataclass(frozen=True)
class Numbers:
    """The numbers of a step, as they came from the device; any thread may make metrics of them."""

    packed: list[tuple[np.ndarray, list[_Group]]]
    known: dict[str, float]

    def values(self) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        """Names and values, float64; of a name that comes twice the last counts."""
        for vector, groups in self.packed:
            numbers, start = vector.astype(np.float64), 0
            for group in groups:
                values = numbers[start : start + group.size]
                yield group.names, values if group.become is None else group.become(values)
                start += group.size


@dataclass
class Reading:
    """What was measured of one step on this rank."""

    step: int
    #: Whether this step is one of those in which the costlier probes look too.
    full: bool
    #: What was known without the device.
    known: dict[str, float] = field(default_factory=dict)
    _open: list[Tensor] = field(default_factory=list)
    _open_groups: list[_Group] = field(default_factory=list)
    _packed: list[tuple[Tensor, list[_Group]]] = field(default_factory=list)

    def add(self, names: tuple[str, ...], values: Tensor | Sequence[Tensor], become: Finish | None = None) -> None:
        """Numbers on the device, and the metrics that they are, or that `become` makes of them."""
        parts = [values.flatten()] if isinstance(values, Tensor) else [value.reshape(1) for value in values]
        if parts:
            self._open += parts
            self._open_groups.append(_Group(names, sum(part.numel() for part in parts), become))

    def finish(self) -> None:
        """Pack what was added since the last time, without waiting for the device."""
        if self._open:
            wide = torch.float64 if any(part.dtype == torch.float64 for part in self._open) else torch.float32
            self._packed.append((torch.cat([part.to(wide) for part in self._open]), self._open_groups))
            self._open, self._open_groups = [], []

    def fetch(self) -> Numbers:
        """Bring the numbers over; waits for the device unless the step has been waited for."""
        self.finish()
        return Numbers([(vector.cpu().numpy(), groups) for vector, groups in self._packed], self.known)
