"""All detectors of a run in one: each step's findings, with what else moved first as evidence.

A monitor process that was killed is started again with `replay` of the last few hundred steps from the store, after which every state is what it
was up to what older steps left; nothing is told twice. State is bounded: it grows with metrics and ranks, never with steps. Cost: see
`benchmarks/detect_cost.py`. When not to use it: on the training thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from penstock.monitor.detect.clock import ClockSkew
from penstock.monitor.detect.data_faults import DataFaults
from penstock.monitor.detect.divergence import Divergence, Smoothed
from penstock.monitor.detect.expected import Expected
from penstock.monitor.detect.experts import DeadExperts
from penstock.monitor.detect.finding import Detector, Finding, Moved
from penstock.monitor.detect.fold import Fold
from penstock.monitor.detect.gradients import Gradients
from penstock.monitor.detect.hang import Hang
from penstock.monitor.detect.leak import Leak
from penstock.monitor.detect.loss_spike import LossSpike
from penstock.monitor.detect.multivariate import Multivariate
from penstock.monitor.detect.non_finite import NonFinite
from penstock.monitor.detect.novel import Novel
from penstock.monitor.detect.plateau import Plateau
from penstock.monitor.detect.reading import Work
from penstock.monitor.detect.stall import Stall
from penstock.monitor.detect.straggler import Straggler
from penstock.monitor.detect.throughput import Throughput
from penstock.monitor.series.table import StepTable

#: What recording itself costs, which brings nothing about and is no evidence.
OWN = "monitor/"
#: Metrics of evidence in a finding.
EVIDENCE = 8


class Watch:
    """Every detector; `update` with each step in order, `silence` with the clock now and then."""

    def __init__(self) -> None:
        self.hang = Hang()
        self._expected, self._work = (expected := Expected()), Work()
        self._whole, self._novel, loss = Multivariate(expected), Novel(), Smoothed(expected)
        self._named: tuple[Detector, ...] = (
            NonFinite(), LossSpike(expected), Divergence(loss), Plateau(loss), Gradients(expected), Straggler(expected), Throughput(expected), Leak(),
            DataFaults(expected), DeadExperts(), Stall(expected), ClockSkew(), self.hang,
        )  # fmt: skip
        self._fold = Fold()

    def update(self, table: StepTable, generation: int = 0) -> list[Finding]:
        """What is wrong as of this step of a generation (`Merged.generation`)."""
        if self._work.changed(table, generation):
            self._expected.renew()
            for detector in self._named:
                detector.renew()
        self._expected.update(table)
        self._novel.update(table.step, self._whole.values_m, self._whole.against)
        whole = self._whole.update(table)
        found = [finding for detector in self._named for finding in detector.update(table)]
        return self._fold.keep([self._with_evidence(finding, table) for finding in found] + whole, table.step)

    def silence(self, now: float) -> list[Finding]:
        """What shows in time that passes without rows (`now`: unix seconds)."""
        return [finding for detector in self._named for finding in detector.silence(now)]

    def replay(self, steps: Iterable[tuple[StepTable, int]]) -> None:
        """Learn from steps of the past, each with its generation, and tell nothing of them."""
        for table, generation in steps:
            self.update(table, generation)

    def _with_evidence(self, finding: Finding, table: StepTable) -> Finding:
        """What the detector looked at comes first, then what else left its expectation, then what behaves as never before, first movers first."""
        moved: dict[str, Moved] = {}
        for one in (*finding.moved, *self._whole.moved(table), *self._novel.moved(table)):
            if not one.name.startswith(OWN):
                moved.setdefault(one.name, one)
        return dataclasses.replace(finding, moved=tuple(moved.values())[:EVIDENCE])
