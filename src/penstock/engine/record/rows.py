"""A step's row, made of what the training thread has handed over (`recording.py`): here and in
`known.py` it is said which number becomes which metric.

Runs in the thread beside the training thread (`monitor/bus/aside.py`), and touches nothing but what it is given. Cost: a fifth of a millisecond for
600 metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from penstock.data import Batch
from penstock.engine.probes.reading import Numbers
from penstock.monitor.bus.host import HostGauge
from penstock.monitor.bus.recorder import Recorder
from penstock.monitor.bus.spans import SpanRing
from penstock.monitor.bus.tokens import NAMES, TokenWatch
from penstock.monitor.series.rows import RowLog
from penstock.monitor.series.shots import StepShots

#: Numbers that parts of the engine leave in the notes of a step, and their metrics.
NOTES = {
    "snapshot_wait_s": "snapshot/wait",
    "snapshot_stall_s": "snapshot/stall",
    "steps_taken_back": "fault/steps_taken_back",
    "exchanges_repeated": "fault/exchanges_repeated",
    "expert_load_max_over_mean": "expert_load/total",
    "share_min": "data/share_min",
    "share_max": "data/share_max",
    "imbalance": "time/imbalance",
    "imbalance_predicted": "time/imbalance_predicted",
}
#: Endings of what the meter tells of a collective, and the quantities that they are.
TRAFFIC = (("_between_bytes", "bytes", ".between"), ("_bytes", "bytes", ""), ("_calls", "calls", ""), ("_s", "wait", ""))
WORKS = {"F": "forward", "B": "backward", "I": "input_gradient", "W": "weight_gradient"}


@dataclass(frozen=True)
class Taken:
    """What a step left behind that began at `began` (`time.perf_counter`): its seconds, seconds by phase, what the meter counted, notes.

    Of the meter's seconds `hidden` are those of threads aside, and `outside` those between this step and the one before.
    """

    began: float
    seconds: float
    phases: Mapping[str, float]
    traffic: Mapping[str, float]
    hidden: Mapping[str, float]
    outside: Mapping[str, float]
    notes: Mapping[str, float]


class Finished(NamedTuple):
    """A step that is through, at `time` (unix seconds), as the training thread leaves it; a plain tuple, as it makes one in each step.

    `held` are known metrics that stay as they are, `known` works out those of this step. `numbers` is what probes measured, `marks` what a pipeline's
    stages did, and `shot` the same by the host's clock, in steps of which all ranks keep what they did (`monitor/series/shots.py`). Of recording
    itself: `between_s` lay between the end of the last step and this one, `own_s` the last one took of the training thread besides reading what was
    measured, which took `read_s` in this one; and so many rows and looks at tokens were missed.
    """

    step: int
    time: float
    held: Mapping[str, float]
    known: Callable[[], Mapping[str, float]]
    taken: Taken
    numbers: Numbers | None
    marks: Sequence[tuple[Any, float, float]]
    shot: Sequence[tuple[Any, float, float]] | None
    between_s: float
    own_s: float
    read_s: float
    missed_rows: int
    missed_looks: int


class RowBuilder:
    """Builds and writes the rows of one rank, and keeps what is measured beside them."""

    def __init__(self, log: RowLog, gauge: HostGauge, tokens: TokenWatch, spans: SpanRing, shots: StepShots) -> None:
        self._log, self._gauge, self._tokens, self._spans, self._shots = log, gauge, tokens, spans, shots
        self._record = Recorder(log)
        self._names: dict[str, str] = {}
        self._looked: tuple[int, np.ndarray] | None = None
        self._host: dict[str, float] = {}

    def look_at(self, step: int, batches: Sequence[Batch]) -> None:
        """Look at the tokens of a step, whose row comes later."""
        self._looked = step, self._tokens.look(batches)

    def look_around(self, folder: Path, rank: int, trace_s: float) -> None:
        """Read the host, and write spans if that is due."""
        self._host = self._gauge.read()
        self._spans.write_if_asked(folder, rank, trace_s)

    def write(self, done: Finished) -> None:
        """Write the row of a step."""
        record, taken = self._record, done.taken
        if done.numbers is not None:
            for names, values in done.numbers.values():
                record.put_all(record.columns(names), values)
            record.put_each(done.numbers.known)
        record.put_each(done.held)
        record.put_each(done.known())
        waited = self._of_traffic(taken) + self._of_pipeline(done)
        record.put_each({f"time/{name}": seconds for name, seconds in taken.phases.items()})
        record.put_each({
            "time/at": done.time,
            "time/step": taken.seconds,
            "time/other": max(0.0, taken.seconds - sum(taken.phases.values())),
            "time/own": max(0.0, taken.seconds - waited),
            "time/between": done.between_s,
            "wait/total": waited,
        })  # fmt: skip
        for name, value in taken.notes.items():
            record.put(NOTES.get(name) or f"monitor/note.{name}", value)
        if self._looked is not None and self._looked[0] == done.step - 1:
            record.put_all(record.columns(NAMES), self._looked[1])
        host, self._host = self._host, {}
        resident = self._gauge.resident
        record.put_each(host if resident is None else host | {"memory/resident": resident})
        record.put_each({
            "monitor/metrics": len(record.names),
            "monitor/rows_dropped": self._log.dropped,
            "monitor/values_dropped": record.dropped_values + record.dropped_observations,
            "monitor/seconds": done.own_s,
            "monitor/read_seconds": done.read_s,
            "monitor/rows_missed": done.missed_rows,
            "monitor/tokens_missed": done.missed_looks,
        })  # fmt: skip
        record.write(done.step, done.time)
        if done.shot is not None:
            start, end = taken.began, taken.began + taken.seconds
            spans = self._spans.between(start, end) + self._spans.placed("pipeline", done.shot)
            self._shots.keep(done.step, self._spans.unix(start), self._spans.unix(end), sorted(spans, key=lambda span: span[1]))

    def close(self) -> None:
        """No more rows come."""
        self._record.close()

    def _of_traffic(self, taken: Taken) -> float:
        """What the meter counted, by collective; returns the seconds that held up this rank."""
        record, waited, span = self._record, 0.0, 0.0
        for key, value in taken.traffic.items():
            if key == "exchange.span_s":
                span = value
                continue
            name = self._names.get(key) or self._names.setdefault(key, metric_of(key))
            if name.startswith("wait/"):
                hidden = taken.hidden.get(name.removeprefix("wait/"), 0.0)
                if hidden:
                    record.put(f"{name}.hidden", hidden)
                    value -= hidden
                waited += value - taken.outside.get(name.removeprefix("wait/"), 0.0)
                record.observe("wait/collective", value)
            record.put(name, value)
        if span:
            record.put("wait/exchange.hidden", max(0.0, span - taken.traffic.get("exchange.exposed_s", 0.0)))
        return waited

    def _of_pipeline(self, done: Finished) -> float:
        """What this rank's stages did; returns the seconds in which they waited for others."""
        if not done.marks:
            return 0.0
        self._spans.add_all("pipeline", done.marks)
        by_work: dict[str, float] = {}
        for action, start, end in done.marks:
            by_work[action.work] = by_work.get(action.work, 0.0) + end - start
        seconds, busy = done.taken.phases.get("forward_backward", 0.0), sum(by_work.values())
        idle = max(0.0, seconds - busy)
        self._record.put_each({f"pipeline/{WORKS[work]}": took for work, took in by_work.items()})
        self._record.put_each({
            "pipeline/busy": busy,
            "pipeline/idle": idle,
            "pipeline/bubble": idle / seconds if seconds else 0.0,
            "pipeline/length": done.marks[-1][2] - done.marks[0][1],
            "pipeline/actions": len(done.marks),
        })  # fmt: skip
        return idle


def metric_of(key: str) -> str:
    """The metric of what the meter calls `axis.purpose_bytes` and the like."""
    for ending, quantity, more in TRAFFIC:
        if key.endswith(ending):
            return f"{quantity}/{key.removesuffix(ending)}{more}"
    return f"bytes/{key}"
