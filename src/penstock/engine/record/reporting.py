"""A run's report: the page of the run, frozen into its folder as `report.html` when training ends, well or by an error.

The process that runs the training writes it, after the ranks and the monitor have ended, so that the last rows and alerts are in it. Whatever goes
wrong with it (a full disk, damaged metrics) is said in one line: a report is not worth a run. Cost: `dashboard/frozen.py`. When not to use it: while
the run trains (`penstock report RUN`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.store import Run, run_state

FILE = "report.html"


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Write the run's report when the training in the block has ended; none where it never began."""
    try:
        yield
    finally:
        write_report(run)


def write_report(run: Run) -> None:
    """Write the run's report, or say why there is none."""
    try:
        from penstock.dashboard.frozen import freeze  # loaded only by the one process that writes

        if run_state(run) != "new":
            freeze(run, run.path / FILE)
    except Exception as error:
        text = str(error).partition("\n")[0] or type(error).__name__
        print(f"no report was written ({text}); `penstock report {run.path}` writes one later", file=sys.stderr, flush=True)
