"""What all requests share: the runs, their open metrics, the live feeds, and who may act; made once for a server.

Cost: none by itself. When not to use it: for what belongs to one request.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from fastapi import Request

from penstock.dashboard.access import Access
from penstock.dashboard.actions import Actions
from penstock.dashboard.catalog import Catalog
from penstock.dashboard.live import Hub
from penstock.dashboard.opened import Opened, held
from penstock.dashboard.plain import to_json
from penstock.dashboard.standing import Standing
from penstock.store.runs import Run

#: Seconds for which a look at a run counts that is not watched live, and of how many runs it is kept.
FRESH_S, MOST_KEPT = 2.0, 64


class House:
    """One server's things."""

    def __init__(self, runs_dir: Path, access: Access) -> None:
        self.catalog, self.access = Catalog(runs_dir), access
        self.opened, self.hub, self.actions = Opened(), Hub(), Actions()
        self._looks: dict[Path, tuple[float, str]] = {}
        self._looking = threading.Lock()

    def overview(self, run: Run) -> str:
        """How a run stands, as JSON."""
        if told := self.hub.overview(run.path):
            return told
        with held(self._looking, run.name):  # several pages that open at once look once
            at, told = self._looks.get(run.path, (0.0, ""))
            if not told or time.monotonic() - at > FRESH_S:
                told = to_json(Standing(run).as_dict())
                while len(self._looks) >= MOST_KEPT:
                    self._looks.pop(next(iter(self._looks)))
                self._looks[run.path] = time.monotonic(), told
            return told


def house_of(request: Request) -> House:
    """The server's things, for a request."""
    found = request.app.state.house
    assert isinstance(found, House)
    return found
