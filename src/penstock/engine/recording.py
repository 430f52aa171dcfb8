"""One row a step of everything that this rank has measured, from the start of training to its end.

    begin    the rank's log is opened, under the number that the rank has now and a generation that all agree on; a thread looks at host and tokens
    step     numbers of the step, its phases, collectives, memory, snapshots and the probes' values → one row (`monitor/series/rows.py`)
    failed   a step that is not finite: its row too, with what the probes saw of it, before the run ends
    end      the log is closed

Training begins anew in every generation of ranks that watch over each other, and whenever a run is resumed; each time with a rank's number of that
time. Names and units of all metrics are in the catalogue (`monitor/bus/catalogue.py`). The only exchange between ranks is one number at the start.

Cost: some 50 µs of the training thread a step beyond reading values that are there, for 300 metrics (`benchmarks/monitor_cost.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from penstock.engine.step import NonFinite
from penstock.models import flops_per_token
from penstock.monitor.bus.aside import Aside
from penstock.monitor.bus.catalogue import CATALOGUE
from penstock.monitor.bus.host import HostGauge
from penstock.monitor.bus.recorder import Recorder
from penstock.monitor.bus.spans import SpanRing
from penstock.monitor.bus.tokens import NAMES, TokenWatch
from penstock.monitor.series.kinds import write_kinds
from penstock.monitor.series.rows import RowLog, next_generation

if TYPE_CHECKING:
    from penstock.engine.build import Core, Parts
    from penstock.engine.step import StepResult

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


@dataclass(frozen=True)
class Taken:
    """What a step left behind: its seconds, seconds by phase, what the meter counted, and notes."""

    seconds: float
    phases: dict[str, float]
    traffic: dict[str, float]
    notes: dict[str, float]


class Recording:
    """The rows of one rank; nothing is recorded before `of`, nor where the config says so."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._aside: Aside | None = None
        self._spans = SpanRing()
        self._log: RowLog | None = None
        self._names: dict[str, str] = {}
        self._static: dict[str, float] = {}
        self._model: object = None
        #: Seconds that recording took of the training thread after the last step, beyond reading what was measured.
        self.own_s = 0.0
        self._ended = 0.0

    @contextmanager
    def of(self, parts: Parts) -> Iterator[None]:
        """Record the training in the block; all ranks must enter it."""
        if not parts.config.metrics.rows:
            yield
            return
        self._begin(parts)
        try:
            yield
        except NonFinite as error:
            self._failed(parts, error)
            raise
        finally:
            self._end(parts)

    def step(self, parts: Parts, result: StepResult, taken: Taken) -> None:
        """Record a finished step; the device has come to its end."""
        if self._recorder is None:
            return
        step, record = parts.progress.step, self._recorder
        began = self._of_model(parts, step)
        optim = parts.config.optim
        clip = optim.clip
        record.put_each({
            "loss/total": result.loss,
            "grad_norm/total": result.grad_norm,
            "optim/lr": optim.lr * result.lr_factor,
            "optim/lr_factor": result.lr_factor,
            "optim/clip_scale": min(1.0, clip / (result.grad_norm + 1e-6)) if clip else 1.0,
            "optim/clipped": float(bool(clip) and result.grad_norm > clip),
            "optim/progress": step / max(1, parts.config.train.steps),
            "data/tokens": result.tokens,
            "data/tokens_total": parts.progress.tokens,
            "data/epoch": self._epoch(parts, step),
            "cost/tokens_per_s": result.tokens / taken.seconds,
            "cost/flops": result.tokens * self._static["cost/flops_per_token"],
            "cost/mfu": parts.journal.utilisation(result.tokens / taken.seconds),
            "cost/rank_seconds": taken.seconds,
        })  # fmt: skip
        if optim.kind == "muon":
            record.put("optim/muon_lr", optim.muon_lr * result.lr_factor)
        self._of_step(parts, step, taken)
        self._write(parts, step, began)

    def _begin(self, parts: Parts) -> None:
        world, folder = parts.world, parts.run.path / "metrics"
        generation = int(max(world.gather_numbers(next_generation(folder), "rows")))
        if world.is_lead:
            with suppress(OSError):
                write_kinds(folder, CATALOGUE)
        self._log = RowLog(folder, world.rank, world.size, generation, parts.progress.step)
        self._recorder = Recorder(self._log)
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        gauge = HostGauge(world.device, parts.run.path, first_here)
        tokens = TokenWatch(parts.config.model.vocab)
        self._aside = Aside(gauge, tokens, self._spans, folder, world.rank, parts.config.metrics.trace_s)
        parts.timer.spans, world.meter.listener = self._spans.add, self._spans.add
        parts.probes.look_aside = self._aside.look_at
        self._ended = time.perf_counter()

    def _end(self, parts: Parts) -> None:
        parts.timer.spans, parts.world.meter.listener, parts.probes.look_aside = None, None, None
        if self._aside is not None:
            self._aside.close()
        if self._recorder is not None:
            self._recorder.close()
        self._aside, self._recorder = None, None

    def _failed(self, parts: Parts, error: NonFinite) -> None:
        """Record the step after `progress.step`, whose loss or gradient is not finite."""
        assert self._recorder is not None
        step = parts.progress.step + 1
        parts.probes.failed(step - 1)
        taken = Taken(time.perf_counter() - self._ended, parts.timer.take(), parts.world.meter.take(), parts.notes)
        began = self._of_model(parts, step)
        self._recorder.put_each({"loss/total": error.loss, "grad_norm/total": error.grad_norm, "fault/non_finite": 1.0})
        self._of_step(parts, step, taken)
        self._write(parts, step, began)

    def _of_model(self, parts: Parts, step: int) -> float:
        """Put what the probes measured, and what does not change while this model is trained; returns when that was read (`time.perf_counter`)."""
        assert self._recorder is not None
        began = time.perf_counter()
        if self._model is not parts.optimizer:
            self._model, self._static = parts.optimizer, held_bytes(parts)
        reading = parts.probes.read(step - 1)
        found = reading.read() if reading is not None else []
        done = time.perf_counter()
        self._recorder.put("monitor/read_seconds", done - began)
        for names, values in found:
            self._recorder.put_all(self._recorder.columns(names), values)
        self._recorder.put_each(reading.known if reading is not None else {})
        return done

    def _of_step(self, parts: Parts, step: int, taken: Taken) -> None:
        """Time by phase and collective, traffic, tokens, memory, host, snapshots, faults."""
        record, aside = self._recorder, self._aside
        assert record is not None and aside is not None
        waits = self._of_traffic(parts, taken.traffic)
        now = time.perf_counter()
        between, self._ended = max(0.0, now - self._ended - taken.seconds), now
        record.put_each({f"time/{name}": seconds for name, seconds in taken.phases.items()})
        record.put("time/step", taken.seconds)
        record.put("time/between", between)
        record.put("time/other", max(0.0, taken.seconds - sum(taken.phases.values())))
        waits += self._of_pipeline(parts, taken.phases.get("forward_backward", 0.0))
        record.put("wait/total", waits)
        record.put("time/own", max(0.0, taken.seconds - waits))
        for name, value in taken.notes.items():
            record.put(NOTES.get(name) or f"monitor/note.{name}", value)
        record.put_each(self._static)
        record.put("snapshot/age", step - max(0, parts.saving.step))
        record.put("fault/recoveries", len(parts.progress.recoveries))
        record.put("data/micro_batch", parts.micro)
        if (figures := aside.tokens_of(step - 1)) is not None:
            record.put_all(record.columns(NAMES), figures)
        record.put_each(aside.host())

    def _of_traffic(self, parts: Parts, traffic: dict[str, float]) -> float:
        """What the meter counted, by collective; returns the seconds that held up this rank."""
        record, hidden, waited = self._recorder, parts.world.meter.hidden, 0.0
        assert record is not None
        span = exposed = 0.0
        for key, value in traffic.items():
            if key == "exchange.span_s":
                span = value
                continue
            name = self._names.get(key)
            if name is None:
                name = self._names[key] = metric_of(key)
            if name.startswith("wait/"):
                aside = hidden.get(name.removeprefix("wait/"), 0.0)
                waited += value - aside
                if aside:
                    record.put(f"{name}.hidden", aside)
                    value -= aside
                if key == "exchange.exposed_s":
                    exposed = value
                record.observe("wait/collective", value)
            record.put(name, value)
        if span:
            record.put("wait/exchange.hidden", max(0.0, span - exposed))
        return waited

    def _of_pipeline(self, parts: Parts, seconds: float) -> float:
        """What this rank's stages did; returns the seconds in which they waited for others."""
        if parts.pipeline is None or not parts.pipeline.marks or parts.world.device.type == "cuda":
            return 0.0
        marks = parts.pipeline.marks
        self._spans.add_all("pipeline", marks)
        by_work: dict[str, float] = {}
        for action, start, end in marks:
            by_work[action.work] = by_work.get(action.work, 0.0) + end - start
        busy, length = sum(by_work.values()), marks[-1].end - marks[0].start
        words = {"F": "forward", "B": "backward", "I": "input_gradient", "W": "weight_gradient"}
        assert self._recorder is not None
        self._recorder.put_each({f"pipeline/{words[work]}": took for work, took in by_work.items()})
        idle = max(0.0, seconds - busy)
        self._recorder.put_each({
            "pipeline/busy": busy, "pipeline/idle": idle, "pipeline/bubble": idle / seconds if seconds else 0.0, "pipeline/length": length,
            "pipeline/actions": len(marks), "pipeline/planned_bubble": parts.pipeline.plan.bubble,
        })  # fmt: skip
        return idle

    def _write(self, parts: Parts, step: int, began: float) -> None:
        """Hand over the row, with what recording itself took and lost."""
        record, aside, log = self._recorder, self._aside, self._log
        assert record is not None and aside is not None and log is not None
        record.put_each({
            "monitor/seconds": self.own_s,
            "monitor/metrics": len(record.names),
            "monitor/rows_dropped": log.dropped,
            "monitor/values_dropped": record.dropped_values + record.dropped_observations,
            "monitor/tokens_missed": aside.missed,
            "monitor/tokens_late": aside.late,
        })  # fmt: skip
        record.write(step, time.time())
        self.own_s = time.perf_counter() - began

    def _epoch(self, parts: Parts, step: int) -> float:
        """Epochs of the text that have been read."""
        windows = getattr(parts.plan, "windows_per_epoch", 0)
        return float(parts.plan.sample_ids(step)[0]) / windows if windows else 0.0


def metric_of(key: str) -> str:
    """The metric of what the meter calls `axis.purpose_bytes` and the like."""
    for ending, quantity, more in TRAFFIC:
        if key.endswith(ending):
            return f"{quantity}/{key.removesuffix(ending)}{more}"
    return f"bytes/{key}"


def held_bytes(parts: Core) -> dict[str, float]:
    """What this rank holds of the state, by kind, and what the model costs."""
    weights = parts.weights.locals.values()
    state = parts.tensors()
    n_bytes = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    own = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    return {
        "memory/weights": own,
        "memory/gradients": own,
        "memory/moments": sum(n for name, n in n_bytes.items() if name.startswith("optim.")),
        "memory/averages": sum(n for name, n in n_bytes.items() if name.startswith("ema.")),
        "memory/state": sum(n_bytes.values()),
        "cost/flops_per_token": flops_per_token(parts.config.model),
        "cost/parameters": parts.weights.n_total,
        "cost/ranks": parts.world.size,
        "host/torch_threads": torch.get_num_threads(),
    }
