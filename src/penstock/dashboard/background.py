"""The page of a run's folder, there as soon as a run trains: finds the server of the folder, or starts one in the background.

    train ── is there a RUNS_DIR/.dashboard.json whose server answers? ── yes: its link
                                                                       └─ no: `penstock dashboard RUNS_DIR --background`, and its link

Training never waits for it and never fails by it: this is done in a thread of its own, every step of it has a deadline, and what goes wrong is told
in a line. Cost: starting a Python in the background, once for all runs of a folder. When not to use it: `metrics.dashboard = false`, and in jobs
of clusters, where nobody reaches a port of that node.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from penstock.config import step_back
from penstock.dashboard.children import environment_of_children
from penstock.dashboard.place import FILE, Place, id_of_path

#: Seconds for one question to a server, for a new one to answer, and between two looks.
ASK_S, START_S, LOOK_S = 2.0, 30.0, 0.1
#: Priority of a server in the background: low.
NICE = 10


def page_of(run: Path, private: bool) -> str | None:
    """The link to a run's page, whose server is started if none answers; with the token in it if it is `private`. None where there is none."""
    runs_dir = run.resolve().parent
    place = _answering(runs_dir) or _started(runs_dir)
    if place is None:
        return None
    path = f"r/{quote(id_of_path(run.resolve().name), safe='')}"
    return f"{place.url}{path}" + (f"#token={place.token}" if private else "")


def _answering(runs_dir: Path) -> Place | None:
    """Where the folder's server is, if it answers that it is the one."""
    with suppress(OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        told = json.loads((runs_dir / FILE).read_text(encoding="utf-8"))
        place = Place(str(told["host"]), int(told["port"]), str(told["token"]))
        if told["machine"] != socket.gethostname():
            return None
        os.kill(int(told["pid"]), 0)  # raises OSError for one that is gone or somebody else's, which is not to get the token
        asked = "127.0.0.1" if place.host in ("0.0.0.0", "::") else place.host
        connection = http.client.HTTPConnection(asked, place.port, timeout=ASK_S)
        connection.request("GET", "/api/v1/me", headers={"X-Penstock-Token": place.token})
        me = json.loads(connection.getresponse().read())
        connection.close()
        if me["pid"] == told["pid"] and me["may_act"] and Path(me["runs_dir"]) == runs_dir:
            return place
    return None


def _started(runs_dir: Path) -> Place | None:
    """Start a server, one of several starting runs, and wait until it answers; None if it does not."""
    end = time.monotonic() + START_S
    with suppress(OSError, Timeout), FileLock(runs_dir / f"{FILE}.lock").acquire(timeout=START_S):
        if place := _answering(runs_dir):
            return place
        process = _start(runs_dir)
        while time.monotonic() < end and process.poll() is None:
            if place := _answering(runs_dir):
                return place
            time.sleep(LOOK_S)
    return None


def _start(runs_dir: Path) -> subprocess.Popen[bytes]:
    """A server that outlives who starts it, and prints nowhere."""
    command = [sys.executable, "-m", "penstock", "dashboard", str(runs_dir), "--background"]
    nowhere, environment = subprocess.DEVNULL, environment_of_children(with_token=True) | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, env=environment, start_new_session=True)
    step_back(process.pid, NICE)
    return process
