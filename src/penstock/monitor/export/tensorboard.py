"""A run's metrics as TensorBoard event files, through the `tensorboard` package's own writer.

A run writes the lead's rows there itself (`board.py`); this writes any metrics of the store, of all ranks, thinned or not. Cost: some 20 ms a step of
300 metrics. When not to use it: while training, which it would slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from penstock.monitor.board import TensorBoardWriter
from penstock.monitor.export.bridges import by_step
from penstock.monitor.series.course import Course


def write_events(folder: Path, courses: Iterable[Course]) -> int:
    """Write courses as events below `folder`; returns how many steps."""
    writer, steps = TensorBoardWriter(folder), 0
    try:
        for step, time, values in by_step(courses):
            writer.write(step, values, time)
            steps += 1
    finally:
        writer.close()
    return steps
