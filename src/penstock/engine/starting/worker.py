"""One rank of a run: build, train, sum up.

`run_rank` is what every way of starting ends in: in this process for one rank, below Penstock's launcher for `--nproc` (`rank.py`), and below
torchrun.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from penstock.comm import World
from penstock.config import Config, EchoedError, SharedError, UserError
from penstock.data import TokenCorpus, prepare
from penstock.engine.build import DTYPES, Parts, build
from penstock.engine.control import StopRequest
from penstock.engine.exchange import consensus
from penstock.engine.guard.roll_back import RolledBack
from penstock.engine.record.exchange_report import announcement
from penstock.engine.record.journal import Journal, summary
from penstock.engine.saving import placed
from penstock.engine.starting.resolve import check_world, cores
from penstock.engine.state import weights_digest
from penstock.engine.trainer import train
from penstock.plan import measure_peak
from penstock.store import Run, list_snapshots, writer_lock


def run_rank(run: Run, world: World, supervised: bool = False, until: int = 0) -> dict[str, Any]:
    """Train `run` on this rank to its end, to step `until` if that is not 0, or until asked to stop; return its summary."""
    config = run.config()
    check_world(config, world.size)
    use_threads(config)
    corpus = open_corpus(run, config)
    with only_writer(run, world), StopRequest(supervised) as stop:
        parts = build(run, config, world, corpus, stop, open_journal(run, config, world))
        if until:
            parts.until, parts.ends_at_until = until, True
        announce(parts)
        complete = None
        try:
            while complete is None:
                try:
                    complete = train_or_tell(parts)
                except RolledBack:
                    parts = begun_again(parts, run.config())
                    announce(parts)
        finally:
            parts.saving.close()
            parts.journal.close()
        return finish(parts, "finished" if complete else "interrupted")


def begun_again(parts: Parts, config: Config) -> Parts:
    """What a rank goes on with from the run's newest snapshot in place of `parts`, which have come further; all ranks must call it."""
    parts.saving.close()
    parts.journal.rewind(list_snapshots(parts.run.folder)[-1].step)
    parts.journal.follow(config)
    fresh = build(parts.run, config, parts.world, parts.corpus, parts.stop, parts.journal)
    if parts.ends_at_until:
        fresh.until, fresh.ends_at_until = parts.until, True
    return fresh


def train_or_tell(parts: Parts) -> bool:
    """Train; return whether the end was reached. What all ranks raise together is told before it goes on its way."""
    try:
        return train(parts)
    except SharedError as error:
        parts.journal.event(parts.progress.step, "failure", str(error))
        parts.saving.tell_history("failure", str(error), parts.progress.step)
        with suppress(UserError):  # the disk may be full for the summary too; the first error counts
            parts.saving.settle(parts)
            finish(parts, "failed")
        raise


@contextmanager
def only_writer(run: Run, world: World) -> Iterator[None]:
    """Be the one job that writes the run; raises `UserError` on all ranks if another is."""
    with ExitStack() as held:
        refused = ""
        if world.is_lead:
            try:
                held.enter_context(writer_lock(run.path))
            except UserError as error:
                refused = str(error)
        if world.any(bool(refused), "lock"):
            raise UserError(refused) if refused else EchoedError("rank 0 says who writes the run")
        yield


def open_corpus(run: Run, config: Config) -> TokenCorpus:
    """The run's prepared corpus; raises `UserError` if the text is not the one the run began with."""
    corpus = prepare(config.data)
    began_with = run.read("run.json").get("data_digest")
    if began_with not in (None, corpus.digest):
        raise UserError(
            f"the corpus at data.path = {config.data.path!r} or its tokenizer has changed since the run {run.name} began; "
            "restore it, or start a new run"
        )
    if began_with is None:
        run.update("run.json", data_digest=corpus.digest)
    return corpus


def open_journal(run: Run, config: Config, world: World) -> Journal:
    """The run's journal, with the hardware's peak measured on the lead rank."""
    peak = config.metrics.peak_tflops
    if not peak and world.is_lead:
        peak = measure_peak(world.device, DTYPES[config.precision.compute]).tflops
    peak = max(world.gather_numbers(peak, "peak"))
    snapshots = list_snapshots(run.folder)
    return Journal(run, config, world, peak * 1e12 * world.size, from_step=snapshots[-1].step if snapshots else 0)


def use_threads(config: Config) -> None:
    """Share the host's cores between its ranks, unless `run.threads` or OMP_NUM_THREADS says otherwise."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    share = max(1, cores() // ranks_here)
    torch.set_num_threads(config.run.threads or int(os.environ.get("OMP_NUM_THREADS", share)))
    torch.set_float32_matmul_precision("highest")


def announce(parts: Parts) -> None:
    """Say what begins, or goes on."""
    config, step = parts.config, parts.progress.step
    ranks = f"{parts.world.size} ranks ({parts.layout})" if parts.world.size > 1 else "1 rank"
    how = f"{ranks} on {parts.world.device.type}, {config.precision.compute}"
    compiled = ", compiled" if config.compile.enabled == "on" else ""
    size = f"{parts.weights.n_total / 1e6:.2f} M parameters"
    parts.journal.say(f"{parts.run.path}: {size}, {len(parts.corpus.train):,} training tokens, {how}{compiled}")
    if nodes := announcement(parts):
        parts.journal.say(nodes)
    if parts.pipeline is not None:
        parts.journal.say(f"pipeline: {parts.pipeline.plan}")
    if step:
        parts.journal.say(f"going on from step {step} of {config.train.steps}")
        parts.journal.event(step, "resume", f"went on from step {step} on {how}")
    text = f"went on from step {step} on {how}" if step else f"began on {how}"
    parts.saving.tell_history("resume" if step else "start", text, step, snapshot=parts.saving.taken_up, layout=placed(parts))


def finish(parts: Parts, state: str) -> dict[str, Any]:
    """Write the run's summary on the lead rank, and return it."""
    with consensus(parts):
        digest = weights_digest(parts.laid)
    result = summary(parts, digest, state)
    try:
        if parts.world.is_lead:
            parts.run.write("summary.json", result)
    finally:
        parts.world.barrier()
    return result
