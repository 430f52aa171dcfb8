"""`exchange.kind = "auto"`: dense while the network keeps up, else nodes that train apart and meet as often as it allows.

    dense       for a few steps, then the share of a step that waits for the exchange is looked at (at once if it is most of one), and again every
                `AGAIN` steps; above `WORTH` nodes train apart from here on, meeting every step (`comm/gradients/periodic.py`)
    periodic    a meeting's seconds are measured, and as few steps lie between two as keep meetings below `MEETINGS` of the time that steps compute
                (`SLACK` times as many are left alone); back to dense, for good, if they take as long as the dense exchange did
    density     what meetings leave out of the nodes' distances, by its squares, is measured too: over `MUCH` the messages carry twice as many
                entries from then on, if that keeps the meetings' place, below `LITTLE` half as many (unless `exchange.density` says how many)

All ranks decide from the slowest rank's seconds, so they decide alike. What was chosen is part of the state: a resumed run goes on with it. It
changes what is computed (each node's updates are its own between meetings); a run that must be the dense one to the bit says "dense".

Cost: one small all-reduce a step.
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

import torch

from penstock.comm import Dense, Periodic, build_between
from penstock.config import ExchangeSection
from penstock.engine.exchange import Arrival, apart_of, begin_together
from penstock.engine.state import parameter_of

if TYPE_CHECKING:
    from penstock.engine.build import Core, Parts

#: Share of a step's time that the dense exchange may take before it is worth a change, and of the time steps compute that meetings may.
WORTH, MEETINGS = 0.1, 0.5
#: Share of a dense step from which a single one decides, and how many times as rare as they need be meetings may stay.
PLAIN, SLACK = 0.5, 1.5
#: Share of what nodes have gone apart that messages may leave out, or should, and the densities between which they are made so.
MUCH, LITTLE, SPARSEST, DENSEST = 0.75, 0.4, 0.02, 0.4
#: Steps at the start that are not looked at, steps or meetings that are looked at together, and steps until dense is looked at again.
WARM_UP, LOOK, AGAIN = 2, 4, 50
#: Most steps between two meetings.
MOST = 16


class ExchangeChooser:
    """Watches what the exchange takes, and changes its kind; does nothing where the config names a kind, or all ranks are on one node."""

    def __init__(self, section: ExchangeSection, nodes: int, saved: dict[str, int]) -> None:
        """`saved` is what a run that goes on had chosen."""
        self._section, self._active = section, section.kind == "auto" and nodes > 1
        self.every = saved.get("every", 0) if nodes > 1 else 0
        self._dense_s = saved.get("dense_us", 0) / 1e6  # what the dense exchange took of a step
        self._density = saved.get("density_ppm", 0) / 1e6  # if another was found better than the usual one
        self._wait = WARM_UP
        self._steps: list[float] = []
        self._exchanges: list[float] = []

    def section(self) -> ExchangeSection:
        """The section with the present choice for its kind."""
        if self._section.kind != "auto":
            return self._section
        if not self.every:
            return self._section.model_copy(update={"kind": "dense"})
        return self._section.model_copy(update={"kind": "periodic", "every": self.every, "density": self._density or self._section.density})

    def numbers(self) -> dict[str, int]:
        """The choice, for a snapshot; nothing where none was called for."""
        found = {"every": self.every, "dense_us": round(self._dense_s * 1e6), "density_ppm": round(self._density * 1e6)}
        return found if self._dense_s else {}

    def after_step(self, parts: Parts, seconds: float) -> None:
        """Take in a step of so many seconds; all ranks must call it."""
        if not self._active or not parts.tuner.settled:
            return
        apart, steps = apart_of(parts.reducer), parts.progress.step
        if apart is not None and steps % apart.every:
            self._steps.append(seconds)
            return
        took = parts.reducer.exposed_s if apart is None else apart.meeting_s
        if self._wait:
            self._wait -= 1
            return
        self._steps.append(seconds)
        self._exchanges.append(took)
        if len(self._exchanges) == LOOK or (apart is None and not self._dense_s and self._plain(parts, seconds, took)):
            step_s, took = (max(parts.world.gather_numbers(median(v), "exchange")) for v in (self._steps, self._exchanges))
            self._steps, self._exchanges = [], []
            text = self._dense(parts, step_s, took) if apart is None else self._apart(parts, apart, step_s, took)
            if text:
                parts.journal.event(steps, "exchange", text)
                parts.journal.say(f"step {steps}: {text}")

    def _plain(self, parts: Core, step_s: float, took: float) -> bool:
        """Whether the slowest rank waited for most of a step."""
        return max(parts.world.gather_numbers(took / step_s, "exchange")) > PLAIN

    def _dense(self, parts: Core, step_s: float, took: float) -> str:
        self._wait = AGAIN
        if self._dense_s or took < WORTH * step_s:  # or it was tried in vain
            return ""
        self._dense_s, self.every, self._wait = took, 1, 1
        parts.reducer.switch(build_between(self.section(), lambda parameter: True))
        return f"a step waits {took:.2f} of {step_s:.2f} s for gradients of other nodes: from now on nodes train apart and meet every step"

    def _apart(self, parts: Parts, apart: Periodic, step_s: float, took: float) -> str:
        if took / self.every > self._dense_s:
            rejoin(parts, apart, parts.progress.step)
            self.every = 0
            return f"a meeting of the nodes takes {took:.2f} s, more than the dense exchange's {self._dense_s:.2f} s: dense from now on"
        rest = max(step_s - took / self.every, 1e-9)
        every = max(1, min(MOST, math.ceil(took / (MEETINGS * rest))))
        if every <= self.every <= SLACK * every:
            every = self.every
        text = "" if every == self.every else f"now one every {every} steps"
        apart.every = self.every = every
        if self._section.density == "auto" and not text:
            text = self._fitted(parts, apart, room=MEETINGS * rest * every / took)
        return f"a meeting of the nodes takes {took:.2f} s beside {rest:.2f} s of computing a step: {text}" if text else ""

    def _fitted(self, parts: Parts, apart: Periodic, room: float) -> str:
        """Let messages carry what they should, if there is `room` for them: how many times as long as it does a meeting may take."""
        left = max(parts.world.gather_numbers(apart.left_share, "exchange"))
        if left > MUCH and room > 2 and apart.density < DENSEST:
            density = min(2 * apart.density, DENSEST)
        elif left < LITTLE and apart.density > SPARSEST:
            density = max(apart.density / 2, SPARSEST)
        else:
            return ""
        apart.density = self._density = density
        return f"messages leave {100 * left:.0f}% of what nodes have gone apart: now the largest {100 * density:.3g}%"


def rejoin(parts: Core, apart: Periodic, steps: int) -> None:
    """End training apart: after a meeting at which everything is sent, every node takes the model's weights and the mean of the nodes' moments."""
    apart.meet(steps, Arrival(parts).agreed, parts.world.meter, everything=True)
    begin_together(parts)
    node = parts.mesh.axis("node")
    for name, tensor in sorted(parts.optimizer.state_tensors().items()):
        if parameter_of(name) in parts.weights.placements:
            node.all_reduce(tensor, "rejoin")
            tensor /= node.size
    with torch.no_grad():
        parts.reducer.switch(Dense())
