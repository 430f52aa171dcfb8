"""One rank of `penstock verify`: `python -m penstock.lab.verify_rank FOLDER` below the launcher.

It reads the question, `cases.json`, checks all cases together with the other ranks, and on the lead appends an answer to `results.jsonl` as
each is done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from penstock.comm import join_world, leave_world
from penstock.config import Config, leave
from penstock.engine import run_reporting
from penstock.lab.cases import Case
from penstock.lab.equivalence import check
from penstock.lab.verify import row


def main(folder: Path) -> int:
    """One rank of a group: check all cases, the lead writing an answer as each is done."""
    return run_reporting(folder, lambda: _answer(folder))


def _answer(folder: Path) -> None:
    torch.set_num_threads(1)
    question = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    config = Config.model_validate(question["config"])
    world = join_world("cpu", config.layout.timeout_s)
    plain: dict[str, Any] = {}
    for case in question["cases"]:
        began = time.perf_counter()
        result = check(world, config, Case(**case), plain)
        if world.is_lead:
            with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(result.as_dict()) + "\n")
            print(f"  {row(result)}  ({time.perf_counter() - began:.1f} s)", file=sys.stderr, flush=True)
    leave_world(world)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    leave(main(Path(sys.argv[1])))
