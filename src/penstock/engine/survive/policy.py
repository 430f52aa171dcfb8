"""How many ranks pay: `elastic.policy = "throughput"`, in the supervisor, by what steps were seen to take.

The batch is the same on any number of ranks, so tokens a second are the inverse of a step's time. Of two numbers of ranks a < b

    brought(a → b) = (time(a) / time(b) − 1) / (b / a − 1)        1: all that the added ranks could bring; 0: nothing; below: they cost

    brought(smaller → now) < elastic.keep           go back to the smaller
    the next larger number was never tried          try it: nothing but a trial tells what ranks of one host take from each other
    brought(now → larger) ≥ elastic.gain            go there

A decision is made after `elastic.cooldown` steps on a number of ranks, from their median time (the first `WARM_UP` left out), and both numbers of a
pair have been seen by then. As keep < gain (which the config's check asks for), what one rule has decided the other does not take back on the same
times, and a number that was given up is not tried again. A number that the run refuses (no memory, no place in the batch) is not asked for again.

What it does not see: a straggler, since ranks wait for each other in every step and a step's time does not tell who was late; other hosts, as
the supervisor keeps one; the price of ranks, which `elastic.gain` stands for.

Cost: reading a number in the supervisor; a trial that does not pay is `cooldown` steps at another speed and two changes of some tenths of a second.
When not to use it: where somebody else decides who has the cores.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import torch

from penstock.comm import choose_device
from penstock.config import ElasticSection, UserError
from penstock.engine.guard.heart import Beat
from penstock.engine.starting.resolve import check_ranks, check_world, cores
from penstock.engine.survive.fewer import config_for
from penstock.engine.survive.scaling import scale_run
from penstock.store import Run, append_event

#: First steps on a number of ranks, whose times do not count.
WARM_UP = 3
#: Seconds that a change may take before it is taken back: a cold start of processes on a busy host.
WAIT_S = 300.0


@dataclass(frozen=True)
class Move:
    """Another number of ranks, and why."""

    ranks: int
    why: str


class Policy:
    """Decides by times of steps alone; `neighbours` of a number of ranks are the next smaller and larger ones that the run can be laid out on."""

    def __init__(self, section: ElasticSection) -> None:
        self._section = section
        self._times: list[float] = []
        self._ranks = 0
        #: Median time of a step, by ranks, when last seen; and numbers of ranks that were refused.
        self.known: dict[int, float] = {}
        self.refused: set[int] = set()

    def saw(self, ranks: int, seconds: float) -> None:
        """A step on so many ranks took so long."""
        if ranks != self._ranks:
            self._ranks, self._times = ranks, []
        self._times.append(seconds)

    def decide(self, larger: int | None, smaller: int | None) -> Move | None:
        """Where to go from here, once enough steps were seen; then the counting begins anew."""
        if len(self._times) < self._section.cooldown:
            return None
        now = self._ranks
        self.known[now], self._times = median(self._times[WARM_UP:]), []
        if smaller is not None and smaller in self.known and self._brought(smaller, now) < self._section.keep:
            return Move(smaller, self._why(smaller, now, f"less than elastic.keep = {self._section.keep}"))
        if larger is not None and larger not in self.refused:
            if larger not in self.known:
                return Move(larger, f"to see what more ranks bring: {self._said(now)}")
            if self._brought(now, larger) >= self._section.gain:
                return Move(larger, self._why(now, larger, f"no less than elastic.gain = {self._section.gain}"))
        return None

    def _brought(self, fewer: int, more: int) -> float:
        return (self.known[fewer] / self.known[more] - 1) / (more / fewer - 1)

    def _why(self, fewer: int, more: int, held: str) -> str:
        return f"as {self._said(fewer)}, {self._said(more)}: the added ranks brought {self._brought(fewer, more):.0%} of their part, {held}"

    def _said(self, ranks: int) -> str:
        return f"a step takes {self.known[ranks]:.3g} s on {ranks}"


class Pilot:
    """Asks a run for what its policy decides, as a user would with `penstock scale`; or in a dry run only says it."""

    def __init__(self, run: Run, policy: Policy, ask: Callable[[Run, int, float, str], object] = scale_run) -> None:
        self._run, self._policy, self._ask = run, policy, ask
        self._asking: threading.Thread | None = None
        self._taken = (0, 0)
        self._said: set[int] = set()

    def look(self, ranks: int, beats: Sequence[Beat]) -> None:
        """Take in the last beats of all `ranks`, and decide if there is something to decide."""
        if len(beats) < ranks or (self._asking is not None and self._asking.is_alive()):
            return
        beat = beats[0]
        if (beat.generation, beat.taken) == self._taken or not beat.taken:
            return
        self._taken = beat.generation, beat.taken
        self._policy.saw(ranks, beat.step_s)
        move = self._policy.decide(self._next(ranks, 1), self._next(ranks, -1))
        if move is None:
            return
        if not self._run.config().elastic.dry_run:
            self._asking = threading.Thread(target=self._go, args=(move, beat.step), name="penstock-policy", daemon=True)
            self._asking.start()
        elif move.ranks not in self._said:
            self._said.add(move.ranks)
            self._tell(f"the policy would go from {ranks} to {move.ranks} ranks, {move.why}", beat.step)

    def _go(self, move: Move, step: int) -> None:
        try:
            self._ask(self._run, move.ranks, WAIT_S, move.why)
        except UserError as error:
            self._policy.refused.add(move.ranks)
            self._tell(f"the policy could not go to {move.ranks} ranks: {error}", step)

    def _next(self, ranks: int, by: int) -> int | None:
        """The next larger or smaller number of ranks within the limits that the run can be laid out on."""
        config = self._run.config()
        section, cuda = config.elastic, choose_device(config.run.device).type == "cuda"
        most = section.max or (torch.cuda.device_count() if cuda else cores())
        while section.min <= (ranks := ranks + by) <= most:
            with suppress(UserError):
                check_ranks(ranks, config.run.device, cores(), "elastic.max")
                check_world(config_for(config, ranks), ranks)
                return ranks
        return None

    def _tell(self, text: str, step: int) -> None:
        print(f"step {step}: {text}", file=sys.stderr, flush=True)
        with suppress(UserError, OSError):
            append_event(self._run.path, "note", text, step, command="policy")
