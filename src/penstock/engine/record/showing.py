"""A run's page, shown as soon as it trains: the dashboard's server of its folder is found or started beside the run, and its link printed.

The training neither waits for that nor ends by it: one thread does it, which ends when the link is known, and whatever goes wrong there leaves the
run without a page and with a line that says so. The server is a process of its own and outlives the run. Cost: once a folder, starting a Python of
low priority. When not to use it: `metrics.dashboard = false`; below torchrun nothing is started, as nobody reaches a port of that node.
"""

from __future__ import annotations

import sys
import threading

from penstock.dashboard.background import page_of
from penstock.store import Run


def show_page(run: Run) -> None:
    """Have a run's page served, unless its settings say otherwise."""
    if run.config().metrics.dashboard:
        threading.Thread(target=_show, args=(run,), name="penstock-page", daemon=True).start()


def _show(run: Run) -> None:
    """Print the link, with the token in it where only the user of a terminal sees it."""
    try:
        link = page_of(run.path, private=sys.stderr.isatty())
        text = f"page  {link}" if link else f"no page is served; `penstock dashboard {run.path.parent}` says why"
    except Exception as error:  # a page is not worth a run
        text = f"no page is served ({error}); `penstock dashboard {run.path.parent}` may tell more"
    print(text, file=sys.stderr, flush=True)
