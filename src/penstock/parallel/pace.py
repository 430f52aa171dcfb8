"""Seconds a replica takes for a sequence, from what its last steps took: steady under noise, quick after a real change, deaf to stalls.

An observation is one step's own seconds over the sequences computed. With the last `WINDOW` of them x,

    usual     level += RATE · (median of x - level)
    change    if the last `AGREE` observations all lie beyond level · (1 ± JUMP), on one side:
              level = their median, and what was before them is forgotten

The median leaves out two stalls of five steps, however long they were; the small rate averages what noise is left (an exponential average of some
eight steps). An average alone would need a dozen steps to follow a rank that has become twice as slow, and would tell a different speed after each;
three steps that agree say it at once. A slowness that comes and goes within three steps (a duty cycle about as long as a step) is no change but
noise about its middle, which is what shares should follow.

Cost: some comparisons a step and replica. When not to use it: for quantities that may be negative or zero.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median_low

#: Observations whose median counts, and how much of the difference to it the level takes over.
WINDOW, RATE = 5, 0.25
#: So many observations in a row that are off the level by more than this share, all on one side, are a change.
AGREE, JUMP = 3, 0.2


class Pace:
    """The predicted seconds a sequence of each replica; nothing is predicted before `AGREE` steps have been observed."""

    def __init__(self, replicas: int) -> None:
        self._seen = [deque[float](maxlen=WINDOW) for _ in range(replicas)]
        self._levels = [0.0] * replicas

    def observe(self, seconds: Sequence[float]) -> None:
        """Take in what a sequence took on each replica in the last step."""
        for replica, (seen, value) in enumerate(zip(self._seen, seconds, strict=True)):
            seen.append(value)
            self._levels[replica] = _followed(seen, self._levels[replica])

    @property
    def known(self) -> bool:
        """Whether there is a prediction."""
        return all(level > 0 for level in self._levels)

    @property
    def seconds(self) -> list[float]:
        """Predicted seconds a sequence by replica; 0 where nothing is known."""
        return list(self._levels)


def _followed(seen: deque[float], level: float) -> float:
    """The next level, given the observations, the newest last; drops those before a change."""
    last = list(seen)[-AGREE:]
    if len(last) < AGREE:
        return level
    if level == 0 or min(last) > level * (1 + JUMP) or max(last) < level * (1 - JUMP):
        seen.clear()
        seen.extend(last)
        return median_low(last)
    return level + RATE * (median_low(seen) - level)
