"""One row a step of everything that this rank has measured, from the start of training to its end.

    begin    the rank's log is opened, under the number that the rank has now and a generation that all agree on; a thread is started beside this one
    step     the probes' numbers are read, the step's own are noted, and the thread makes a row of them (`rows.py`) and writes it
    failed   a step that is not finite: its row too, with what the probes saw of it, before the run ends
    end      the log is closed

Training begins anew in every generation of ranks that watch over each other, and whenever a run is resumed; each time with a rank's number of that
time. Names and units of all metrics are in the catalogue (`monitor/series/catalogue.py`). The only exchange between ranks is one number at the start.

Cost: some tens of µs of the training thread a step beyond reading what was measured (`benchmarks/monitor_cost.py`). A process that is killed may lose
the row of the step that it has just finished, one that fails or is asked to stop loses none.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from penstock.config import Config
from penstock.data import Batch
from penstock.engine.rows import Finished, RowBuilder, Taken
from penstock.engine.step import NonFinite
from penstock.models import flops_per_token
from penstock.monitor.bus.aside import Aside
from penstock.monitor.bus.host import HostGauge
from penstock.monitor.bus.spans import SpanRing, spans_file
from penstock.monitor.bus.tokens import TokenWatch
from penstock.monitor.series.catalogue import CATALOGUE
from penstock.monitor.series.kinds import write_kinds
from penstock.monitor.series.rows import RowLog, next_generation
from penstock.monitor.series.shots import PLAN, StepShots, is_shot, write_beside

if TYPE_CHECKING:
    from penstock.engine.build import Core, Parts
    from penstock.engine.step import StepResult
    from penstock.parallel.pipeline.plan import PipelinePlan

#: Steps whose batches may wait to be looked at, and sequences of all ranks by which a run that goes on knows what it read before.
MOST_LOOKS, KNOWN = 2, 1024


class Recording:
    """The rows of one rank; nothing is recorded outside `of`, nor where the config says so."""

    def __init__(self) -> None:
        self._aside: Aside | None = None
        self._builder: RowBuilder | None = None
        self._static: dict[str, float] = {}
        self._model: object = None
        self._plan: object = None
        self._ended, self._looks = 0.0, 0
        #: Rows, and looks at a step's tokens, for which the thread had no time.
        self.missed_rows, self.missed_looks = 0, 0
        #: Seconds that the last step's recording took of this thread: reading what was measured, and all else.
        self.read_s, self.own_s = 0.0, 0.0

    @contextmanager
    def of(self, parts: Parts) -> Iterator[None]:
        """Record the training in the block; all ranks must enter it."""
        if not parts.config.metrics.rows:
            yield
            return
        spans = SpanRing()
        self._begin(parts, spans)
        try:
            yield
        except NonFinite as error:
            self._failed(parts, error)
            raise
        finally:
            self._end(parts, spans)

    def step(self, parts: Parts, result: StepResult, taken: Taken) -> None:
        """Record a finished step; the device has come to its end."""
        if self._aside is None:
            return
        began = time.perf_counter()
        optim, clip, price = parts.config.optim, parts.config.optim.clip, parts.config.cost.per_device_hour
        hours = (parts.progress.device_s + taken.seconds * parts.world.size) / 3600
        self._hand_over(parts, parts.progress.step, began, taken, {
            "loss/total": result.loss,
            "grad_norm/total": result.grad_norm,
            "optim/lr": optim.lr * result.lr_factor,
            "optim/lr_factor": result.lr_factor,
            "optim/clip_scale": min(1.0, clip / (result.grad_norm + 1e-6)) if clip else 1.0,
            "optim/clipped": float(bool(clip) and result.grad_norm > clip),
            "snapshot/last": float(result.stop or parts.progress.step == parts.until),
            "data/tokens": result.tokens,
            "data/tokens_total": parts.progress.tokens,
            "cost/tokens_per_s": result.tokens / taken.seconds,
            "cost/mfu": parts.journal.utilisation(result.tokens / taken.seconds),
            "cost/device_hours": hours,
            **({"cost/money": hours * price} if price else {}),
            **({"optim/muon_lr": optim.muon_lr * result.lr_factor} if optim.kind == "muon" else {}),
        })  # fmt: skip

    def _begin(self, parts: Parts, spans: SpanRing) -> None:
        config, world, folder = parts.config, parts.world, parts.run.path / "metrics"
        generation = int(max(world.gather_numbers(next_generation(folder), "rows")))
        if world.is_lead:
            with suppress(OSError):
                write_kinds(folder, CATALOGUE)
        gauge = HostGauge(world.device, parts.run.path, os.environ.get("LOCAL_RANK", "0") == "0")
        log = RowLog(folder, world.rank, world.size, generation, parts.progress.step)
        tokens = TokenWatch(config.model.vocab)
        tokens.know(read_before(parts), parts.progress.step)
        builder = self._builder = RowBuilder(log, gauge, tokens, spans, StepShots(log.folder, world.rank))
        self._aside = Aside(partial(builder.look_around, folder, world.rank, config.metrics.trace_s))
        parts.timer.spans, world.meter.listener, parts.probes.look_aside = spans.add, spans.add, self._look_at
        self._ended = time.perf_counter()

    def _end(self, parts: Parts, spans: SpanRing) -> None:
        parts.timer.spans, parts.world.meter.listener, parts.probes.look_aside = None, None, None
        aside, builder, self._aside, self._builder = self._aside, self._builder, None, None
        if aside is not None and builder is not None:
            aside.do(builder.close)
            aside.close()
        if parts.config.metrics.trace_s:
            spans.write(spans_file(parts.run.path / "metrics", parts.world.rank), parts.world.rank)

    def _failed(self, parts: Parts, error: NonFinite) -> None:
        """Record the step after `progress.step`, whose loss or gradient is not finite."""
        step = parts.progress.step + 1
        parts.probes.failed(step - 1)
        traffic = parts.world.meter.take()
        meter = parts.world.meter
        began = time.perf_counter()
        seconds = began - self._ended
        taken = Taken(self._ended, seconds, parts.timer.take(), traffic, meter.hidden, meter.outside, parts.notes)
        self._hand_over(parts, step, began, taken, {"loss/total": error.loss, "grad_norm/total": error.grad_norm, "fault/non_finite": 1.0})

    def _look_at(self, step: int, batches: Sequence[Batch]) -> None:
        """Have the tokens of a step looked at, which nobody changes any more."""
        if self._aside is None or self._builder is None:
            return
        if self._looks >= MOST_LOOKS or not self._aside.do(partial(self._look, self._builder, step, batches)):
            self.missed_looks += 1
        else:
            self._looks += 1

    def _look(self, builder: RowBuilder, step: int, batches: Sequence[Batch]) -> None:
        """In the thread: look at the tokens of a step."""
        self._looks -= 1
        builder.look_at(step, batches)

    def _hand_over(self, parts: Parts, step: int, began: float, taken: Taken, known: dict[str, float]) -> None:
        """Read what the probes measured of a step, and have its row written; recording it `began` then."""
        reading_from = time.perf_counter()
        reading = parts.probes.read(step - 1)
        numbers = reading.fetch() if reading is not None else None
        read = time.perf_counter()
        if self._model is not parts.optimizer:  # built, or built anew
            self._model, self._static = parts.optimizer, held(parts)
        between, self._ended = max(0.0, began - self._ended - taken.seconds), began
        piped = parts.pipeline is not None and parts.world.device.type == "cpu"
        marks = parts.pipeline.marks if piped and parts.pipeline is not None else []
        known |= self._static
        known |= {
            "optim/progress": step / max(1, parts.until),
            "data/micro_batch": parts.micro,
            "time/between": between,
            "snapshot/age": step - max(0, parts.saving.step),
            "fault/recoveries": len(parts.progress.recoveries),
            "fault/batches_left_out": parts.progress.left_out,
            "monitor/seconds": self.own_s,
            "monitor/read_seconds": read - reading_from,
            "monitor/rows_missed": self.missed_rows,
            "monitor/tokens_missed": self.missed_looks,
        }
        if parts.pipeline is not None:
            known["pipeline/planned_bubble"] = parts.pipeline.plan.bubble
        shot = None
        if is_shot(step):
            shot = parts.pipeline.host_spans() if parts.pipeline is not None else []
        assert self._aside is not None and self._builder is not None
        if not self._aside.do(partial(self._builder.write, Finished(step, time.time(), known, taken, numbers, marks, shot))):
            self.missed_rows += 1
        if parts.pipeline is not None and parts.world.is_lead and self._plan is not parts.pipeline.plan:
            self._plan = plan = parts.pipeline.plan
            self._aside.do(lambda: write_beside(parts.run.path / "metrics" / PLAN, told_plan(plan, step)))
        self.read_s = read - reading_from
        self.own_s = time.perf_counter() - began - self.read_s


def told_plan(plan: PipelinePlan, step: int) -> dict[str, Any]:
    """A pipeline's plan as it is told beside the metrics: its stages, and what each rank is to do when, in the unit of its costs."""
    rows = zip(plan.schedule.actions, plan.timing.spans)
    spans = [[(str(action), start, end - start) for action, (start, end) in zip(actions, times)] for actions, times in rows]
    return plan.as_dict() | {"step": step, "bubble": plan.bubble, "spans": spans}


def held(parts: Core) -> dict[str, float]:
    """What this rank holds of the state, by kind, and what the model costs."""
    n_bytes = {name: tensor.numel() * tensor.element_size() for name, tensor in parts.tensors().items()}
    own = sum(tensor.numel() * tensor.element_size() for tensor in parts.weights.locals.values())
    flops = flops_per_token(parts.config.model)
    return {
        "memory/weights": own,
        "memory/gradients": own,
        "memory/moments": sum(n for name, n in n_bytes.items() if name.startswith("optim.")),
        "memory/averages": sum(n for name, n in n_bytes.items() if name.startswith("ema.")),
        "memory/state": sum(n_bytes.values()),
        "cost/flops_per_token": flops,
        "cost/flops": flops * parts.config.batch.global_ * parts.config.model.context,
        "cost/parameters": parts.weights.n_total,
        "cost/ranks": parts.world.size,
        "cost/way": way_of(parts.config),
        "host/torch_threads": torch.get_num_threads(),
    }


def way_of(config: Config) -> float:
    """A checksum of the settings that say how a step is computed, without what it computes; up to 2³², which a float holds exactly."""
    sections = [getattr(config, name).model_dump_json() for name in ("layout", "precision", "exchange", "pipeline", "compile", "balance")]
    return float(zlib.crc32("".join(sections).encode()))


def read_before(parts: Parts) -> Iterator[Batch]:
    """What this rank read in the steps before the coming one, as far as it takes to know the text; the data's order gives it again."""
    step, per_step = parts.progress.step, max(1, parts.config.batch.global_)
    first = max(parts.progress.since, step - max(1, KNOWN // per_step))
    for one in range(first, step):
        yield parts.own_tokens(parts.plan.fetch(parts.sequences_of(parts.plan.sample_ids(one), parts.world.rank)))

