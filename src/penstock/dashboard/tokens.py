"""How many tokens had been trained after a step: from the metric that counts them, else from the settings.

The count grows by the same number each step but where the batch was changed, so a thinned course of it, with straight lines between its points and
beyond its end, gives it at every step. Cost: one course of 4,000 points, kept for some seconds. When not to use it: to bill somebody; a thinned
course may be a few steps off where the batch changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from penstock.dashboard.opened import Metrics
from penstock.dashboard.rows import setting

NAME, POINTS = "data/tokens_total", 4000

#: Tokens after steps: float64 [rows] from float64 [rows].
TokensAt = Callable[[np.ndarray], np.ndarray]


def tokens_at(run: Path, metrics: Metrics) -> TokensAt:
    """The count of a run's tokens as a function of its steps."""
    return metrics.keep("tokens", lambda: _measured(metrics) or _planned(run))


def _measured(metrics: Metrics) -> TokensAt | None:
    if NAME not in metrics.names():
        return None
    [course] = metrics.series.courses([NAME], points=POINTS)
    known = np.isfinite(course.value)
    steps, tokens = course.steps[known].astype(np.float64), course.value[known]
    return _line(steps, tokens) if len(steps) > 1 else None


def planned_tokens(run: Path) -> float:
    """Tokens of a step by the run's settings; 0 where these cannot be read."""
    return float((setting(run, "batch", "global") or 0) * (setting(run, "model", "context") or 0))


def _planned(run: Path) -> TokensAt:
    a_step = planned_tokens(run)
    return lambda steps: steps * a_step


def _line(steps: np.ndarray, tokens: np.ndarray) -> TokensAt:
    """Straight lines between points, and on beyond the ends as between the last two there."""
    first = (tokens[1] - tokens[0]) / (steps[1] - steps[0])
    last = (tokens[-1] - tokens[-2]) / (steps[-1] - steps[-2])

    def at(asked: np.ndarray) -> np.ndarray:
        inside = np.interp(asked, steps, tokens)
        inside = np.where(asked > steps[-1], tokens[-1] + last * (asked - steps[-1]), inside)
        return np.where(asked < steps[0], np.maximum(0.0, tokens[0] - first * (steps[0] - asked)), inside)

    return at
