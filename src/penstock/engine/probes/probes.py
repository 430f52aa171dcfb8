"""The probes of a rank, as a step talks to them.

    watched(core, step, …)   around the forward and backward passes; again where they are repeated
    losses(losses)           each micro-batch's loss
    note(norms)              given to the clip, which computes the gradients' norms
    updating(step)           around the optimizer
    read(step)               names and values, once the step has been waited for

Where steps are checked late, two are under way; so each has its own `Reading`. In every `metrics.probe_every`-th step the costlier probes look too;
where that is 0, or no rows are recorded, every verb does nothing. Nothing is exchanged between ranks, nothing waits for the device, and nothing that
is trained changes by a bit. Cost: `benchmarks/monitor_cost.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from penstock.data import Batch
from penstock.engine.exchange import apart_of
from penstock.engine.probes.activations import AFTERWARDS, Activations
from penstock.engine.probes.loads import load_figures
from penstock.engine.probes.norms import Norms
from penstock.engine.probes.reading import Reading
from penstock.engine.step import device_batch

if TYPE_CHECKING:
    from penstock.engine.build import Core

#: Steps whose numbers are kept until somebody reads them.
KEPT = 4
#: Micro-batches of a step whose losses are recorded one by one.
MOST_MICRO = 64

_MICRO = tuple(f"loss/micro.{micro:02d}" for micro in range(MOST_MICRO))
_SAMPLE = tuple(f"data/sample.{micro:02d}" for micro in range(MOST_MICRO))
#: Takes a step's number and its micro-batches.
LookAside = Callable[[int, Sequence[Batch]], None]


class Probes:
    """Measures the model on one rank, whatever core trains it."""

    def __init__(self) -> None:
        self._readings: dict[int, Reading] = {}
        self._now: Reading | None = None
        self._core: Core | None = None
        self._norms: Norms | None = None
        self._loads: tuple[Tensor, int] | None = None
        #: Looks at the micro-batches of a step beside the training thread.
        self.look_aside: LookAside | None = None
        #: The micro-batches of the step that was begun last.
        self.batches: Sequence[Batch] = ()

    @contextmanager
    def watched(self, core: Core, step: int, batches: list[Batch], sample_ids: Sequence[np.ndarray]) -> Iterator[None]:
        """Look at the passes of a step's micro-batches, made of those samples; what was measured of this step before is forgotten."""
        every = core.config.metrics.probe_every
        if not (every and core.config.metrics.rows):
            self._now = None
            yield
            return
        self._core, self.batches = core, batches
        if self.look_aside is not None:
            self.look_aside(step, batches)
        if self._norms is None or self._norms.weights is not core.weights:
            self._norms = Norms(core.weights, apart_of(core.reducer) is not None)
        reading = self._now = self._readings[step] = Reading(step, step % every == 0)
        for old in sorted(self._readings)[:-KEPT]:
            del self._readings[old]
        reading.known |= {name: float(ids[0]) for name, ids in zip(_SAMPLE, sample_ids)}
        activations = Activations(core)
        with activations.watched(reading):
            yield
        if reading.full and activations.way == AFTERWARDS:
            self._look_again(reading, 0)

    def losses(self, losses: list[Tensor]) -> None:
        """The summed loss of each micro-batch of the step under way, on the ranks that have it; recorded as a mean a token."""
        if self._now is None or not losses:
            return
        shown = list(zip(losses, self.batches))[:MOST_MICRO]
        tokens = np.array([max(1, int((batch.targets_bt >= 0).sum())) for _, batch in shown])
        self._now.add(_MICRO[: len(shown)], [loss for loss, _ in shown], lambda sums: sums / tokens)
        self._now.finish()

    def note(self, norms: Tensor) -> None:
        """The norms of the gradients of the step under way, of which the clip makes that of the whole."""
        if self._now is not None and self._norms is not None:
            self._norms.gradients(self._now, norms)
            self._now.finish()

    @contextmanager
    def updating(self, step: int) -> Iterator[None]:
        """Measure the update of `step`."""
        reading = self._readings.get(step)
        if reading is None or self._norms is None or not reading.full:
            yield
            return
        assert self._core is not None
        with self._norms.updating(reading):
            yield
        self._norms.moments(reading, self._core.optimizer.state_tensors())
        reading.finish()

    def note_loads(self, load_le: Tensor, first: int) -> None:
        """The tokens of each expert of all ranks in the step under way, of layers from `first` on, a row each."""
        self._loads = (load_le, first) if self._now is not None else None

    def take_loads(self) -> None:
        """Take note of how uneven they were, by layer; for when the loads have been waited for."""
        if self._loads is not None and self._now is not None:
            (load_le, first), self._loads = self._loads, None
            self._now.known |= load_figures(load_le.cpu().numpy(), first)

    def read(self, step: int) -> Reading | None:
        """What was measured of a step; it and all before it are forgotten."""
        found = self._readings.pop(step, None)
        for old in [one for one in self._readings if one < step]:
            del self._readings[old]
        if not self._readings:
            self._now = None
        return found

    def failed(self, step: int) -> None:
        """The step is not finite: look into a compiled model once more, at the first micro-batch whose loss is not."""
        reading = self._readings.get(step)
        if reading is None or self._core is None or not self.batches or Activations(self._core).way != AFTERWARDS:
            return
        losses = [value for names, values in reading.fetch().values() for name, value in zip(names, values) if name.startswith("loss/micro.")]
        self._look_again(reading, next((micro for micro, loss in enumerate(losses) if not np.isfinite(loss)), 0))

    def _look_again(self, reading: Reading, micro: int) -> None:
        assert self._core is not None
        Activations(self._core).again(reading, device_batch(self.batches[micro], self._core.world.device))
