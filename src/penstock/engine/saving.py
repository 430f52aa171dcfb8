"""The run's snapshots as the loop sees them: what goes into one, when to wait for it, and what is told of how it went.

A snapshot that is due is begun and left to the store's background thread (`store/snapshots/saver.py`); what became of it is told at a later step. One
that could not be written is a warning, and the run goes on to the next. The last one of a run is waited for, and its failure ends the run.

Its `about` says what made the state: settings, code and machine, the data with seed and step (the samples are a pure function of those), the layout,
and what was measured at that step. The lead keeps the run's history beside it.

Cost: as the saver; in the metrics `snapshot_stall_s` is what a step boundary took of training, `snapshot_wait_s` how much of that was waiting for
the snapshot before.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from penstock.comm import World
from penstock.config import Config, UserError
from penstock.store import Increments, Manifest, Outcome, Policy, Run, Saver, Snapshot, append_event, collect, history_head, published, tell_snapshot

if TYPE_CHECKING:
    from penstock.engine.build import Parts

#: A step after every step: packs of all steps that have no snapshot are left over from a save that was cut short.
NEVER = 1 << 62


class Saving:
    """Saves the state of a run that took up the snapshot `before`, if any; all ranks make it together."""

    def __init__(self, run: Run, config: Config, world: World, before: Manifest | None) -> None:
        self._run, self._lead, self._alone = run, world.is_lead, world.size == 1
        self._policy, increments = _stored_as(config)
        if world.is_lead:
            collect(run.path, Policy(keep=0), published=NEVER)
        self._saver = Saver(run.folder, world, increments, before, self._after, config.layout.timeout_s)
        #: Id of the snapshot that was taken up.
        self.taken_up = before.id if before else None
        #: Step of the newest snapshot that there is or that is being written; -1: none.
        self.step = before.step if before else -1

    def follow(self, config: Config) -> None:
        """Go on with other settings."""
        self._policy, increments = _stored_as(config)
        self._saver.follow(increments)

    def prepare(self, parts: Parts) -> None:
        """Make room for the first snapshot."""
        self._saver.prepare(parts.tensors(), parts.placements(), parts.layout)

    def save(self, parts: Parts, last: bool = False) -> None:
        """Begin to write the state of the current step, unless it is there; the `last` one is waited for. Raises `SharedError` if that fails."""
        began, step = time.perf_counter(), parts.progress.step
        if last:
            self.settle(parts)
        if self.step != step:
            note_choices(parts)
            about = about_state(parts) | {"history": history_head(self._run.path)} if self._lead else {}
            waited = self._saver.save(step, parts.tensors(), parts.placements(), parts.layout, parts.progress.numbers(), about, exact=last)
            self.step = step
            parts.notes |= {"snapshot_wait_s": waited, "snapshot_stall_s": time.perf_counter() - began}
        if last:
            self._saver.wait()
            for outcome in self._saver.outcomes():
                published(outcome, self._run.folder)
                self._tell(parts, outcome)

    def after_step(self, parts: Parts) -> None:
        """Tell what became of snapshots."""
        for outcome in self._saver.outcomes():
            self._tell(parts, outcome)

    def settle(self, parts: Parts) -> list[Outcome]:
        """Wait until nothing is being written, and tell what became of it."""
        self._saver.wait()
        outcomes = self._saver.outcomes()
        for outcome in outcomes:
            self._tell(parts, outcome)
        return outcomes

    def close(self) -> None:
        """Let the background thread end. A process alone waits for what it is writing; among others, one that failed must not wait for them."""
        if self._alone:
            with suppress(Exception):  # what ends the run has been raised
                self._saver.wait()
        self._saver.close()

    def abandon(self) -> None:
        """Give up what is being written, together with the process groups of ranks some of which are lost."""
        self._saver.abandon()

    def _tell(self, parts: Parts, outcome: Outcome) -> None:
        for text in outcome.warnings:
            parts.journal.warn(text)
            self.tell_history("note", text, outcome.step)
        if outcome.snapshot is not None:
            how = f"{outcome.n_bytes / 1e6:,.2f} MB in {outcome.seconds:.2f} s"
            parts.journal.event(outcome.step, "snapshot", f"saved the state of step {outcome.step}: {how}")
            return
        if self.step == outcome.step:
            self.step = -1
        parts.journal.warn(f"step {outcome.step} could not be saved: {outcome.failure}; earlier snapshots are whole, and the run goes on")
        self.tell_history("alert", f"could not be saved: {outcome.failure}", outcome.step)

    def tell_history(self, kind: str, text: str, step: int, **data: Any) -> None:
        """Add to the run's history, on the lead, if the disk lets us."""
        if self._lead:
            with suppress(UserError, OSError):
                append_event(self._run.path, kind, text, step, **data)

    def _after(self, snapshot: Snapshot, manifest: Manifest) -> None:
        """On the lead, in the background: the published snapshot goes into the history, and those that need not be kept go."""
        tell_snapshot(self._run.path, manifest)
        collect(self._run.path, self._policy, published=snapshot.step)


def _stored_as(config: Config) -> tuple[Policy, Increments]:
    """Which snapshots are kept, and how they are stored."""
    section = config.snapshot
    return Policy(section.keep, section.keep_every, section.keep_hours, section.keep_best), Increments(section.increments, section.chain)


def note_choices(parts: Parts) -> None:
    """Put into the plain numbers of the state what was chosen while training."""
    parts.progress.slots, parts.progress.shares = parts.placer.numbers(), parts.balancer.numbers()
    parts.progress.exchange, parts.progress.judged = parts.chooser.numbers(), parts.judge.numbers()


def about_state(parts: Parts) -> dict[str, Any]:
    """What made the state of the current step, for whoever finds its snapshot."""
    identity, config, step = parts.run.read("run.json"), parts.config, parts.progress.step
    return {
        "run": parts.run.name,
        "config": config.tree(),
        "code": identity.get("code"),
        "environment": identity.get("environment"),
        "data": {"digest": identity.get("data_digest"), "seed": config.run.seed, "step": step},
        "layout": placed(parts),
        "metrics": parts.journal.measured | {"tokens": parts.progress.tokens, "tokens_per_s": parts.journal.speed()},
    }


def placed(parts: Parts) -> dict[str, Any]:
    """The layout with what else decides in which order numbers are added: the device, and the threads of a rank."""
    return parts.layout.as_dict() | {"device": parts.world.device.type, "threads": torch.get_num_threads()}
