"""A run's metrics to Weights & Biases: `pip install penstock[wandb]`; its settings (WANDB_MODE=offline, say) are its own.

Cost: some 3 ms a step of 300 metrics, in a process of its own. When not to use it: as the store; what is sent is a copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.monitor.export.bridges import by_step, needed
from penstock.monitor.series.course import Course


def send(run: str, config: dict[str, Any], courses: Iterable[Course]) -> int:
    """Send courses as the history of a W&B run of this name; returns how many steps."""
    steps = 0
    with needed("wandb", "wandb").init(project="penstock", name=run, config=config) as sent:
        for step, time, values in by_step(courses):
            sent.log({**values, "_timestamp": time}, step=step)
            steps += 1
    return steps
