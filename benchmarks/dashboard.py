"""The dashboard's server: how soon it answers, what it takes, and how far its live page lags behind the run.

A server as users start it, in a process of its own, asked over HTTP by this one; nothing to compare with is measured. Aims stand in brackets.
`list_first_s`, `list_s`: the list of 1,000 runs, the first time after the start and then (1 s). A run of 500 metrics × 1,000,000 steps of one rank,
in the store: `open_s`, 12 panels of 1,000 points each over all steps, the store not opened before (2 s); `zoom_s`, the same panels over the middle
tenth; `memory_mb`, the server's largest resident memory then (500 MB). A run of 8 ranks and 172 metrics that writes a row of each rank every 0.45 s,
five viewers of 12 metrics each: `live_cpu`, the server's share of one core over 20 s (0.05); `live_delay_s`, from the last rank's row in its log to
the event in a viewer, the median, and `live_delay_most_s` the largest (1 s); `live_50_…` the same with 50 viewers. `load`: the machine's load average
before and after.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import urlencode

import psutil

from benchmarks.dashboard_runs import LONG_STEPS, LiveRun, long_run, many_runs

RUNS, PANELS, POINTS = 1000, 12, 1000
VIEWERS, MANY_VIEWERS, WATCHED_S, SETTLE_S, STEP_S = 5, 50, 20.0, 5.0, 0.45
DEADLINE_S = 300.0


class Server:
    """A server of a folder, asked by HTTP; ended with the block."""

    def __init__(self, runs_dir: Path) -> None:
        command = [sys.executable, "-m", "penstock", "dashboard", str(runs_dir), "--port", "0", "--json"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        self.port = int(json.loads(self._process.stdout.readline())["port"])
        self._measured = psutil.Process(self._process.pid)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def open(self, path: str) -> http.client.HTTPResponse:
        """The answer to a GET, to be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        connection.request("GET", f"/api/v1{path}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return answer

    def seconds(self, path: str) -> float:
        """How long a GET takes, to its last byte."""
        began = time.perf_counter()
        self.open(path).read()
        return time.perf_counter() - began

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        times = self._measured.cpu_times()
        return float(times.user + times.system)

    def peak_mb(self) -> float:
        """Largest resident memory so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def run() -> dict[str, float]:
    """Measure all."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        figures = listed(Path(folder) / "many") | asked(Path(folder) / "long") | live(Path(folder) / "live")
        many = live(Path(folder) / "live_50", MANY_VIEWERS)
        figures |= {name.replace("live_", "live_50_"): figure for name, figure in many.items()}
    return figures | {"load_before": load, "load_after": os.getloadavg()[0]}


def listed(root: Path) -> dict[str, float]:
    """A thousand runs in the list."""
    many_runs(root, RUNS)
    with Server(root) as server:
        first = server.seconds("/runs")
        return {"list_first_s": first, "list_s": statistics.median(server.seconds("/runs") for _ in range(5))}


def asked(root: Path) -> dict[str, float]:
    """Panels of a long run."""
    names = long_run(root)
    panels = urlencode({"name": names[::40][:PANELS], "points": POINTS}, doseq=True)
    middle = urlencode({"from": int(0.45 * LONG_STEPS), "to": int(0.55 * LONG_STEPS)})
    with Server(root) as server:
        server.open("/runs").read()
        before = server.cpu()
        figures = {"open_s": server.seconds(f"/runs/long/series?{panels}"), "open_cpu_s": server.cpu() - before}
        figures["zoom_s"] = statistics.median(server.seconds(f"/runs/long/series?{panels}&{middle}") for _ in range(5))
        figures["memory_mb"] = server.peak_mb()
    shutil.rmtree(root)
    return figures


def live(root: Path, viewers: int = VIEWERS) -> dict[str, float]:
    """Viewers of a run that trains."""
    with LiveRun(root) as training, Server(root) as server:
        written: dict[int, float] = {}
        delays: list[float] = []
        query = urlencode({"name": training.names[:PANELS]}, doseq=True)
        streams = [server.open(f"/runs/live/live?{query}") for _ in range(viewers)]
        for stream in streams:
            threading.Thread(target=_view, args=(stream, written, delays), daemon=True).start()
        began, cpu = 0.0, 0.0
        end = time.monotonic() + SETTLE_S + WATCHED_S
        while time.monotonic() < end:
            written[training.step + 1] = time.monotonic() + 1e9  # no viewer may see it before it is there
            training.write()
            written[training.step] = time.monotonic()
            if not began and time.monotonic() > end - WATCHED_S:
                began, cpu = time.monotonic(), server.cpu()
                delays.clear()
            time.sleep(STEP_S)
        share = (server.cpu() - cpu) / (time.monotonic() - began)
        return {"live_cpu": share, "live_delay_s": statistics.median(delays), "live_delay_most_s": max(delays)}


def _view(stream: http.client.HTTPResponse, written: dict[int, float], delays: list[float]) -> None:
    """Read a stream on, and note how late each event of rows is after its last step was written."""
    kind = ""
    while line := stream.readline():
        if line.startswith(b"event: "):
            kind = line[7:].strip().decode()
        elif kind == "rows" and line.startswith(b"data: "):
            now = time.monotonic()
            delays.append(now - written[json.loads(line[6:])["through"]])
