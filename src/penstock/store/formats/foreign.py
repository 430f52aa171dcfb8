"""A state in another library's files, opened: what tensors it has, and each of them on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

#: Full shape and dtype of each tensor by name.
Described = dict[str, tuple[tuple[int, ...], torch.dtype]]
#: Hands out a tensor by name, on the CPU.
Read = Callable[[str], Tensor]


class Foreign(ABC):
    """A folder of another library's; `label` is how messages call it."""

    label: str
    #: Its tensors.
    described: Described
    #: Names of what it has besides, which are left out.
    others: list[str]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, whole, on the CPU; raises `UserError` if its file is damaged."""
