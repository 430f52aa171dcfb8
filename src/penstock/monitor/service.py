"""The monitor of a run, a process of its own: `python -m penstock.monitor.service RUN`, started by the engine (`engine/record/monitoring.py`).

    tail the ranks' rows → steps' tables → store, grid of ranks, detectors → findings  ┐
    follow the history   → deaths, recoveries, snapshots that failed    ┴→ desk: one alert a fault → book, sinks, and orders on stdout for the engine

It reads the run's folder, and nothing of a run waits for it: it may be killed, stopped or slow, and its disk full. A new one goes on where the store
ends, learns again from the rows that ranks still have, stored or not, without telling of them again (`monitor.json` says how far the one before had
come), and takes the book as it is. There is one at a time, which the store's lock sees to. It ends when stdin says "end", or, with an alert of its
own, when the process that started it is gone. It imports no torch, so it starts in a moment and takes some tens of MB; its priority is low. Cost: on
the lead node some percent of a core. When not to use it: `metrics.monitor = false` on hosts that have not even that; the ranks' rows are kept all the
same.
"""

from __future__ import annotations

import json
import math
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from penstock.config import Config, UserError, parse_config
from penstock.config.load import read_toml
from penstock.monitor.alerts import Alert, Book, Desk, RunEvents, parse_policy
from penstock.monitor.detect import Finding, Watch
from penstock.monitor.series import GridKeeper, Keeper, Kinds, Merged, StepTable, read_kinds
from penstock.monitor.series.gather import NOTHING, Gather
from penstock.monitor.series.kinds import FILE
from penstock.monitor.sinks import Message, Sinks, build_sinks

#: Seconds between two looks, between two notes of how far it is, and at the end for what the sinks have not been told yet.
LOOK_S, NOTE_S, LAST_S = 0.1, 1.0, 3.0
#: Seconds that an evaluation, a snapshot or the run's end may take beyond what steps do before that is a hang.
ALLOW_S, END_S = 60.0, 600.0
#: Steps from which a monitor that is started again learns, and bytes of their tables, at most.
LEARN_STEPS, LEARN_BYTES = 512, 64 << 20
#: Where a run's commands are, and how the file of one ends that is being carried out (`engine/requests/commands.py`).
COMMANDS, TAKEN = "commands", ".taken"
#: File that says how far the monitor has come.
STATUS = "monitor.json"
#: Priority: low, but not so low that on busy hosts alerts come late.
NICE = 10
#: Exit code where another monitor has the store, or the disk refuses.
REFUSED = 3


def warning(text: str) -> None:
    """Tell the terminal that something is amiss."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Detectors(Protocol):
    """What finds faults: `detect.Watch`, or another."""

    def update(self, table: StepTable, generation: int) -> list[Finding]:
        """What is wrong as of this step of a generation."""

    def silence(self, now: float) -> list[Finding]:
        """What shows in time without rows."""


class Service:
    """Watches one run; the caller turns it. Raises `UserError` where another watches it, or its disk refuses."""

    def __init__(self, run: Path, config: Config, detectors: Detectors, sinks: Sinks, warn: Callable[[str], None] = warning) -> None:
        self._run, self._config, self._detectors, self._sinks = run, config, detectors, sinks
        self._folder, self._policy = run / "metrics", parse_policy(config.alerts.act)
        before = _status(self._folder)
        #: Time of the last step that was watched, by this monitor or the one before (unix seconds).
        self.through = float(before.get("through", 0.0))
        self._seen_before, self._step, self._noted = self.through, int(before.get("step", 0)), 0.0
        self._time = self.through
        self._acted: set[str] = set()
        self.keeper = Keeper(self._folder, read_kinds(self._folder) or Kinds())
        self._grid = GridKeeper(self._folder, warn)
        self._learn_again()
        self.desk = Desk(Book(run), self._told)
        self.desk.book.refresh()
        self._events = RunEvents(run, int(before.get("seq", 0)))

    def _learn_again(self) -> None:
        """Let detectors know the run from rows that are stored, as far as the ranks' logs still have them."""
        if not isinstance(self._detectors, Watch) or self.keeper.through == NOTHING:
            return
        known: deque[Merged] = deque(maxlen=LEARN_STEPS)
        for one in Gather(self._folder).rest():
            if (one.generation, one.table.step) <= self.keeper.through:
                known.append(one)
                while len(known) * one.table.values_rm.nbytes > LEARN_BYTES:
                    known.popleft()
        self._detectors.replay((one.table, one.generation) for one in known)
        self._detectors.hang.begin(time.time(), ALLOW_S)

    def turn(self) -> bool:
        """Take in what has come; whether any step had."""
        merged = self.keeper.poll(time.monotonic())
        for one in merged:
            self._watch(one)
        self._grid.write_if_due(time.monotonic())
        for told in self._events.read():
            self.desk.told(told)
            if told.back is not None and isinstance(self._detectors, Watch):
                self._detectors.hang.begin(time.time(), ALLOW_S)
        now = time.time()
        if not merged:
            self._allow_commands()
            self.desk.take(self._detectors.silence(now), now)
            self.desk.idle(now)
        if now - self._noted > NOTE_S:
            self._note(now)
        return bool(merged)

    def _allow_commands(self) -> None:
        """Give the run time for what it was asked to do and has taken up: a change of settings builds its ranks anew."""
        if isinstance(self._detectors, Watch):
            with suppress(OSError):
                if any(name.endswith(TAKEN) for name in os.listdir(self._run / COMMANDS)):
                    self._detectors.hang.allow(ALLOW_S)

    def lost(self) -> None:
        """The process that runs the training is gone."""
        text = f"the process that ran the training is gone after step {self._step}"
        self.desk.take([Finding("run_lost", self._step, self._step, 1.0, None, None, (), text)], time.time())

    def close(self) -> None:
        """Take in the rest, store it, and let the sinks have what they have not been told."""
        while self.turn():
            pass
        for merged in self.keeper.gather.rest():
            self._watch(merged)
        self._grid.write_if_due(math.inf)
        self.desk.close()
        with suppress(OSError):  # else they stay in the ranks' logs
            self.keeper.store()
        self._note(time.time())
        self.keeper.close()
        self._sinks.close(LAST_S)

    def _watch(self, merged: Merged) -> None:
        table, found = merged.table, self._detectors.update(merged.table, merged.generation)
        self._step, self._time = table.step, table.time
        self._grid.grid.add(merged, self.keeper.gather.merger.generations[merged.generation])
        if table.time <= self._seen_before:
            return  # it was told by the monitor before
        self.through = max(self.through, table.time)
        if isinstance(self._detectors, Watch) and (seconds := pause_after(table, self._config)):
            self._detectors.hang.allow(seconds)
        self.desk.step(table, found)

    def _told(self, event: str, alert: Alert) -> None:
        """Tell people, and order what the policy has for it."""
        self._sinks.put(Message(self._run.name, event, alert))
        action = self._policy.get(alert.kind)
        if action and action != "skip" and event != "resolved" and alert.id not in self._acted:
            self._acted.add(alert.id)
            told = {"id": alert.id, "kind": alert.kind, "since": alert.since, "rank": alert.rank, "what": alert.what}
            say({"act": action, "time": self._time, **told})

    def _note(self, now: float) -> None:
        self._noted = now
        told = {
            "pid": os.getpid(), "time": now, "step": self._step, "through": self.through, "seq": self._events.seq,
            "alerts_left_out": self.desk.left_out, "steps_unstored": self.keeper.unstored, "rows_lost": self.keeper.gather.lost,
            "rows_late": self.keeper.gather.merger.late,
            "sinks": {worker.name: {"sent": worker.sent, "left_out": worker.left_out} for worker in self._sinks.workers},
        }  # fmt: skip
        partial = self._folder / f"{STATUS}.partial"
        with suppress(OSError):  # a full disk: a later monitor tells some steps again, which the book knows
            partial.write_text(json.dumps(told), encoding="utf-8")
            os.replace(partial, self._folder / STATUS)


def pause_after(table: StepTable, config: Config) -> float:
    """Seconds that the pause after a step may be longer than others, as something is due then, or it was the last."""
    step = table.step
    if step >= config.train.steps or bool((table.of("snapshot/last") > 0).any()):
        return END_S
    every = config.eval.every, config.snapshot.every
    return ALLOW_S if any(n and step % n == 0 for n in every) else 0.0


def say(line: dict[str, Any]) -> None:
    """Tell the engine something, if it listens."""
    with suppress(OSError, ValueError):
        print(json.dumps(line), flush=True)


def _status(folder: Path) -> dict[str, Any]:
    """What the monitor before noted; nothing if there was none, or it is damaged."""
    with suppress(OSError, ValueError):
        told = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    return {}


def _ended(parent: int, seconds: float) -> str | None:
    """Wait so long at most for the end: "end" if it was said, "lost" if the parent is gone, None if neither."""
    if os.getppid() != parent:
        return "lost"
    if select.select([sys.stdin], [], [], seconds)[0]:
        return "end" if sys.stdin.readline().strip() == "end" else "lost"
    return None


def main(run: Path) -> int:
    """Watch a run until it ends; the exit code."""
    parent = os.getppid()
    np.seterr(all="ignore")  # what is measured may be infinite
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    end = None
    while end is None and not (run / "metrics" / FILE).exists():
        end = _ended(parent, LOOK_S)
    try:
        config = parse_config(read_toml(run / "config.toml"))
        service = Service(run, config, Watch(), build_sinks(config.alerts, warning))
    except (UserError, OSError) as error:
        say({"refused": str(error)})
        return REFUSED
    say({"ready": True})
    while end is None:
        end = _ended(parent, 0.0 if service.turn() else LOOK_S)
    if end == "lost":
        service.turn()
        service.lost()
    service.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
