"""One row a step of everything that this rank has measured, from the start of training to its end.

    begin    the rank's log is opened, under the number that the rank has now and a generation that all agree on; a thread is started beside this one
    step     the probes' numbers are read, where training stands is noted, and the thread makes a row of it (`known.py`, `rows.py`) and writes it
    failed   a step that is not finite: its row too, with what the probes saw of it, before the run ends
    end      the log is closed

Training begins anew in every generation of ranks that watch over each other, and whenever a run is resumed; each time with a rank's number of that
time. Names and units of all metrics are in the catalogue (`monitor/series/catalogue.py`). The only exchange between ranks is one number at the start.

Cost: some tens of µs of the training thread a step beyond reading what was measured (`benchmarks/monitor_cost.py`). A process that is killed may lose
the rows of the last tenth of a second, one that fails or is asked to stop loses none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.data import Batch
from penstock.engine.record.known import at_step, held, of_failure, of_step
from penstock.engine.record.rows import Finished, RowBuilder, Taken
from penstock.engine.step import NonFinite
from penstock.monitor.bus.aside import Aside
from penstock.monitor.bus.host import HostGauge
from penstock.monitor.bus.spans import SpanRing, spans_file
from penstock.monitor.bus.tokens import TokenWatch
from penstock.monitor.series.catalogue import CATALOGUE
from penstock.monitor.series.kinds import write_kinds
from penstock.monitor.series.rows import RowLog, next_generation
from penstock.monitor.series.shots import PLAN, StepShots, is_shot, write_beside

if TYPE_CHECKING:
    from penstock.engine.build import Parts
    from penstock.engine.step import StepResult
    from penstock.parallel.pipeline.plan import PipelinePlan

#: Steps whose batches may wait to be looked at, and sequences of all ranks by which a run that goes on knows what it read before.
MOST_LOOKS, KNOWN = 8, 1024


class Recording:
    """The rows of one rank; nothing is recorded outside `of`, nor where the config says so."""

    def __init__(self) -> None:
        self._aside: Aside | None = None
        self._builder: RowBuilder | None = None
        self._held: dict[str, float] = {}
        self._model: object = None
        self._plan: object = None
        self._ended, self._looks = 0.0, 0
        #: Rows, and looks at a step's tokens, for which the thread had no time.
        self.missed_rows, self.missed_looks = 0, 0
        #: Seconds that the last step's recording took of this thread: reading what was measured, and all else; of the latter, by handing over tokens.
        self.read_s, self.own_s, self._look_s = 0.0, 0.0, 0.0

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
        began, step = time.perf_counter(), parts.progress.step
        standing = at_step(parts, step, taken.seconds)
        self._hand_over(parts, step, began, taken, partial(of_step, parts.config, result, standing, taken.seconds, parts.journal.utilisation))

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
        self._hand_over(parts, step, began, taken, partial(of_failure, error.loss, error.grad_norm, at_step(parts, step, seconds)))

    def _look_at(self, step: int, batches: Sequence[Batch]) -> None:
        """Have the tokens of a step looked at, which nobody changes any more."""
        if self._aside is None or self._builder is None:
            return
        began = time.perf_counter()
        if self._looks >= MOST_LOOKS or not self._aside.do(partial(self._look, self._builder, step, batches)):
            self.missed_looks += 1
        else:
            self._looks += 1
        self._look_s += time.perf_counter() - began

    def _look(self, builder: RowBuilder, step: int, batches: Sequence[Batch]) -> None:
        """In the thread: look at the tokens of a step."""
        self._looks -= 1
        builder.look_at(step, batches)

    def _hand_over(self, parts: Parts, step: int, began: float, taken: Taken, known: Callable[[], dict[str, float]]) -> None:
        """Read what the probes measured of a step, and have its row written; recording it `began` then."""
        assert self._aside is not None and self._builder is not None
        reading_from = time.perf_counter()
        reading = parts.probes.read(step - 1)
        numbers = reading.fetch() if reading is not None else None
        self.read_s = time.perf_counter() - reading_from
        if self._model is not parts.optimizer:  # built, or built anew
            self._model, self._held = parts.optimizer, held(parts)
        between, self._ended, pipeline, shot = max(0.0, began - self._ended - taken.seconds), began, parts.pipeline, None
        marks = pipeline.marks if pipeline is not None and parts.world.device.type == "cpu" else ()
        if is_shot(step):
            shot = pipeline.host_spans() if pipeline is not None else []
        done = Finished(
            step, time.time(), self._held, known, taken, numbers, marks, shot, between, self.own_s, self.read_s, self.missed_rows, self.missed_looks
        )
        if not self._aside.do(partial(self._builder.write, done)):
            self.missed_rows += 1
        if pipeline is not None and parts.world.is_lead and self._plan is not pipeline.plan:
            self._plan = plan = pipeline.plan
            self._aside.do(lambda: write_beside(parts.run.path / "metrics" / PLAN, told_plan(plan, step)))
        self.own_s, self._look_s = time.perf_counter() - began - self.read_s + self._look_s, 0.0


def told_plan(plan: PipelinePlan, step: int) -> dict[str, Any]:
    """A pipeline's plan as it is told beside the metrics: its stages, and what each rank is to do when, in the unit of its costs."""
    rows = zip(plan.schedule.actions, plan.timing.spans)
    spans = [[(str(action), start, end - start) for action, (start, end) in zip(actions, times)] for actions, times in rows]
    return plan.as_dict() | {"step": step, "bubble": plan.bubble, "spans": spans}


def read_before(parts: Parts) -> Iterator[Batch]:
    """What this rank read in the steps before the coming one, as far as it takes to know the text; the data's order gives it again."""
    step, per_step = parts.progress.step, max(1, parts.config.batch.global_)
    first = max(parts.progress.since, step - max(1, KNOWN // per_step))
    for one in range(first, step):
        yield parts.own_tokens(parts.plan.fetch(parts.sequences_of(parts.plan.sample_ids(one), parts.world.rank)))
