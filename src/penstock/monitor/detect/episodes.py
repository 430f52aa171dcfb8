"""A fault that lasts is told once: the episode it belongs to ends only when it was quiet for some steps.

Cost: nothing to speak of. When not to use it: to group findings of different detectors, which is what alerts do.
"""

from __future__ import annotations

from collections.abc import Hashable


class Episodes:
    """Episodes by key (a rank, a layer, a metric), each told once until `quiet` steps pass without it."""

    def __init__(self, quiet: int) -> None:
        self._quiet = quiet
        self._last: dict[Hashable, int] = {}

    def begins(self, key: Hashable, step: int) -> bool:
        """Whether a fault seen at this step is a new one."""
        new = key not in self._last or not 0 <= step - self._last[key] <= self._quiet
        self._last[key] = step
        self._last = {k: last for k, last in self._last.items() if step - last <= self._quiet}
        return new


class Streak:
    """How often something was so in the last `length` steps, and since when."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._steps: list[int] = []

    def add(self, step: int, so: bool) -> int:
        """Steps among the last `length` in which it was so."""
        self._steps = [s for s in self._steps if step - self._length < s < step] + ([step] if so else [])
        return len(self._steps)

    @property
    def since(self) -> int:
        """The first of these steps."""
        return self._steps[0]

    def clear(self) -> None:
        """Forget all."""
        self._steps = []
