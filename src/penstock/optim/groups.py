"""Groups of parameters with settings of their own, and each parameter's state: what an optimizer is made of.

`torch.optim.Optimizer` holds the same, and much that is not used here. It imports the compiler when the first one is made, which takes longer than
the first steps of a small model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


class Groups:
    """Base of an optimizer: `param_groups`, each with "params" and its settings, and the tensors of `state` by parameter."""

    def __init__(self, groups: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]) -> None:
        """`defaults` are the settings that a group does not give."""
        self.param_groups: list[dict[str, Any]] = [{**defaults, **group} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {p: {} for group in self.param_groups for p in group["params"]}

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        raise NotImplementedError
