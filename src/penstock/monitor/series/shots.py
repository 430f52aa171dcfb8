"""What every rank did in some steps, all ranks in the same ones, so that they can be laid side by side: pipeline actions, phases, waits.

    RUN/metrics/rank-00003/steps.json   {"rank": 3, "host": "node7", "steps": [{"step", "start", "end", "spans": [[name, start, seconds], …]}, …]}
    RUN/metrics/pipeline.json           the plan of the pipeline as it is carried out, which the lead rank writes

Steps 1, 2, 4, 8, 16, and every 32nd are kept, the last `MOST_STEPS` of them, which each rank knows. A span's name is `pipeline.` and stage,
work and micro-batch (`pipeline.0F3`: `parallel/pipeline/schedule.py`), or a phase's or collective's; times are unix seconds of the host's clock, so
ranks of two hosts are as much apart as their clocks are. Cost: one file of some 10 kB in 32 steps, written beside the training: 0.02 ms a step. When
not to use it: for all of many steps in a row, which the ring of spans has (`monitor/bus/spans.py`).
"""

from __future__ import annotations

import json
import os
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE, PLAN = "steps.json", "pipeline.json"
#: Steps between two that are kept; steps that are kept, and spans of one at most.
EVERY, MOST_STEPS, MOST_SPANS = 32, 4, 1000


def is_shot(step: int) -> bool:
    """Whether ranks keep what they do in this step."""
    return step > 0 and (step % EVERY == 0 or (step < EVERY and step & (step - 1) == 0))


class StepShots:
    """The steps that one rank keeps; `rank_folder` is the rank's below the run's `metrics`."""

    def __init__(self, rank_folder: Path, rank: int) -> None:
        self._folder, self._about = rank_folder, {"rank": rank, "host": socket.gethostname()}
        self._steps: deque[dict[str, Any]] = deque(maxlen=MOST_STEPS)

    def keep(self, step: int, start: float, end: float, spans: Sequence[tuple[str, float, float]]) -> None:
        """Keep a step from `start` to `end` (unix seconds) with its spans (name, start, seconds), and write all that are kept if the disk lets us."""
        told = [(name, round(begin, 7), round(seconds, 7)) for name, begin, seconds in spans[:MOST_SPANS]]
        self._steps.append({"step": step, "start": start, "end": end, "spans": told, "left_out": max(0, len(spans) - MOST_SPANS)})
        write_beside(self._folder / FILE, self._about | {"steps": list(self._steps)})


def write_beside(path: Path, value: Any) -> None:
    """Replace a file of JSON whole; nothing where the disk does not take it."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")
        os.replace(partial, path)
