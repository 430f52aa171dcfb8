"""One rank of a benchmark that measures on several: joins the others, measures, and the lead leaves the figures where the launcher looks.

`python -m benchmarks.NAME_ranks FOLDER` below Penstock's launcher ends in `answer`; the figures are in `FOLDER/figures.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from penstock.comm import World, join_world, leave_world
from penstock.engine import run_reporting


def answer(folder: Path, figures: Callable[[World], dict[str, Any]], timeout_s: float) -> int:
    """Measure on this rank, with one thread; return its exit code."""
    def work() -> None:
        torch.set_num_threads(1)
        world = join_world("cpu", timeout_s)
        found = figures(world)
        world.barrier()
        if world.is_lead:
            (folder / "figures.json").write_text(json.dumps(found), encoding="utf-8")
        leave_world(world)

    return run_reporting(folder, work)
