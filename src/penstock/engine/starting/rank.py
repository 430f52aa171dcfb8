"""One rank below Penstock's launcher: `python -m penstock.engine.starting.rank RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

from penstock.comm import join_world, leave_world
from penstock.config import leave
from penstock.engine.guard.failures import run_reporting
from penstock.engine.starting.worker import run_rank
from penstock.store import Run


def main(folder: Path, until: int = 0) -> int:
    """Entry of a rank below the launcher, which stops after step `until` (0: at the run's end); the exit code is the command's."""
    run = Run(folder)

    def work() -> None:
        world = join_world(run.config().run.device, run.config().layout.timeout_s)
        run_rank(run, world, supervised=True, until=until)
        leave_world(world)

    return run_reporting(run.path, work)


if __name__ == "__main__":
    leave(main(Path(sys.argv[1])))
