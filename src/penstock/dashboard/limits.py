"""A limit on how often something may be asked: a bucket that fills evenly and is emptied by a drop a time.

Cost: a look-up. When not to use it: to share work fairly between many users; it only keeps guessing and mischief slow.
"""

from __future__ import annotations

import time
from collections import OrderedDict

#: Callers that are told apart; of more the one that asked for the longest ago is forgotten.
MOST_CALLERS = 1024


class Limit:
    """At most `most` at once and `most` in `seconds` from each caller."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._a_second = float(most), most / seconds
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> bool:
        """Whether the caller may once more."""
        left = self.left(caller)
        may = left >= 1.0
        self._left[caller] = (left - 1.0 if may else left), time.monotonic()
        self._left.move_to_end(caller)
        if len(self._left) > MOST_CALLERS:
            self._left.popitem(last=False)
        return may

    def left(self, caller: str) -> float:
        """How often the caller may now."""
        left, at = self._left.get(caller, (self._most, 0.0))
        return min(self._most, left + (time.monotonic() - at) * self._a_second)
