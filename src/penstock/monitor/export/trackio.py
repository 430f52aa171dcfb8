"""A run's metrics to Trackio, the local tracker with W&B's calls: `pip install penstock[trackio]`, then `trackio show` to look.

Cost: some 1 ms a step. When not to use it: as the store; what is sent is a copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.monitor.export.bridges import by_step, needed
from penstock.monitor.series.course import Course


def send(run: str, config: dict[str, Any], courses: Iterable[Course]) -> int:
    """Send courses as a Trackio run of this name; returns how many steps."""
    trackio = needed("trackio", "trackio")
    trackio.init(project="penstock", name=run, config=config)
    steps = 0
    try:
        for step, _, values in by_step(courses):
            trackio.log(values, step=step)
            steps += 1
    finally:
        trackio.finish()
    return steps
