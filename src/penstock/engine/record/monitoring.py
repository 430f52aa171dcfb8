"""A run's monitor, kept by the process that runs the training: started with the run, started again when it dies, ended with the run.

    launcher, supervisor or the one rank ── stdin: "end" ──► monitor (`monitor/service.py`), a new Python of low priority
                                         ◄── stdout: orders of the policy (`alerts.act`), carried out as commands (`requests/commands.py`)

Nothing of the training waits for the monitor: two threads here sleep until it says something or ends. One that dies is started again, after a second
at first and after a minute at most; one that is stopped is left so, and killed when the run has ended. What was done by itself stands in the run's
history and with the alert. An action is done `alerts.most` times a kind and start of the run, as what did not help so often does not help; how often
a run goes back to the same snapshot it counts itself. Cost: reading a line now and then. When not to use it: `metrics.monitor = false`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from penstock.config import UserError, flat, step_back
from penstock.engine.requests.commands import Answer, send
from penstock.engine.survive import exclude_rank
from penstock.monitor.alerts import read_alerts
from penstock.monitor.service import NICE
from penstock.store import Run, append_event, read_history

#: Seconds until a monitor that died is started again, at first and at most; and the life after which that begins anew.
FIRST_S, MOST_S, SOUND_S = 1.0, 60.0, 60.0
#: Longest that the end of a run waits for its monitor, and that of one that failed, of which the monitor is to tell; seconds.
END_S, FAILED_S = 5.0, 20.0
#: How long an action may take, seconds.
ACT_S = 300.0


@contextmanager
def monitored(run: Run) -> Iterator[None]:
    """Have a run watched while the block runs its training."""
    config = run.config()
    if not (config.metrics.monitor and config.metrics.rows):
        yield
        return
    keeper, failed = MonitorKeeper(run), True
    try:
        yield
        failed = False
    finally:
        keeper.close(failed)


class MonitorKeeper:
    """Keeps the monitor of a run alive."""

    def __init__(self, run: Run) -> None:
        self._run, self._most = run, run.config().alerts.most
        self._process: subprocess.Popen[str] | None = None
        self._closing, self._lock, self._acting = threading.Event(), threading.Lock(), threading.Lock()
        self._ready = False
        self._done: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._keep, name="penstock-monitor", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The monitor's process; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def close(self, failed: bool = False) -> None:
        """End it: let it take in the rest if it is ready or the run has failed, but not for long."""
        with self._lock:
            self._closing.set()
            process = self._process
        if process is not None and process.stdin is not None:
            with suppress(OSError, ValueError):
                process.stdin.write("end\n")
                process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(FAILED_S if failed else END_S if self._ready else 0.0)
            process.kill()
            process.wait()
        self._thread.join(END_S)

    def _keep(self) -> None:
        pause = FIRST_S
        while not self._closing.is_set():
            began = time.monotonic()
            with suppress(OSError):  # no process to be had now: later
                self._live()
            pause = FIRST_S if time.monotonic() - began > SOUND_S else min(MOST_S, 2 * pause)
            self._closing.wait(pause)

    def _live(self) -> None:
        """Start a monitor and hear it until it ends."""
        with self._lock:
            if self._closing.is_set():
                return
            process = self._process = _started(self._run)
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                with suppress(ValueError):
                    self._heard(json.loads(line))
        process.wait()
        self._ready = False

    def _heard(self, told: dict[str, Any]) -> None:
        self._ready = self._ready or "ready" in told
        if "act" in told:
            threading.Thread(target=self._act, args=(told,), name="penstock-act", daemon=True).start()

    def _act(self, order: dict[str, Any]) -> None:
        """Carry out an order; what came of it is written down."""
        with self._acting:
            what = f"{order['act']} for alert {order['id']}"
            self._done[order["kind"]] += 1
            try:
                if self._done[order["kind"]] > self._most and order["act"] != "roll_back":
                    raise UserError(f"not done, as it was done {self._most} times for {order['kind']} already (alerts.most)")
                answer = act(self._run, order)
                text = f"{what}: {answer.text}" if answer.state == "done" else f"{what} was refused: {answer.text}"
            except UserError as error:
                text = f"{what}: {error}"
        with suppress(UserError, OSError):
            append_event(self._run.path, "note", text, alert=order["id"], act=order["act"], why=order["what"])
        book = read_alerts(self._run.path)
        if (alert := book.alerts.get(order["id"])) is not None:
            book.put("acted", alert.noting(text))


def act(run: Run, order: dict[str, Any]) -> Answer:
    """Ask the run for what an order says; raises `UserError` where it cannot be asked, or does not answer."""
    if order["act"] == "exclude":
        if order.get("rank") is None:
            raise UserError("the alert names no rank to go on without")
        rank = rank_now(run, int(order["rank"]), float(order["time"]))
        return Answer("done", exclude_rank(run, rank, ACT_S, f"for alert {order['id']}")["text"])
    if order["act"] != "lower_rate":
        return send(run.path, order["act"], {"alert": order["id"], "since": order["since"]}, ACT_S)
    settings = flat(run.config())
    names = ("optim.lr", "optim.muon_lr") if settings["optim.kind"] == "muon" else ("optim.lr",)
    return send(run.path, "change", {"values": {name: settings[name] * settings["alerts.rate_factor"] for name in names}}, ACT_S)


def rank_now(run: Run, rank: int, time: float) -> int:
    """The number that a rank of a time (unix seconds) has now: ranks that left since made those after them move up.

    Raises `UserError` where it has left itself, or others were lost since, after which nobody knows it by its number.
    """
    named = rank
    for event in read_history(run.folder).events:
        if event.data.get("parted", 0.0) < time:
            continue
        if event.kind == "recovery":
            raise UserError(f"ranks were lost since the alert, and rank {rank} may be another's number by now; what is still so will be told again")
        left = event.data.get("left", [])
        if rank in left:
            raise UserError(f"rank {named} has left the run already: {event.text}")
        rank -= sum(other < rank for other in left)
    return rank


def _started(run: Run) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "penstock.monitor.service", str(run.path.resolve())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True)
    step_back(process.pid, NICE)
    return process
