"""Starting and resuming runs: prepare the corpus, settle the config, make the folder, start the ranks.

On one host Penstock starts the ranks itself (`--nproc`). Below torchrun every rank calls `start_run`; the lead prepares and
tells the others through the process group's store where the run is, or that it failed, so nobody waits for a rank that
has given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from penstock.comm import World, join_world, leave_world, under_launcher
from penstock.config import Config, ConfigError, EchoedError, UserError, flat, with_values
from penstock.data import check_unread, parse_skip, prepare
from penstock.engine.build import batch_plan
from penstock.engine.evaluate import validation_windows
from penstock.engine.record.monitoring import monitored
from penstock.engine.record.reporting import reported
from penstock.engine.record.showing import show_page
from penstock.engine.requests.agenda import due_after, settings_at
from penstock.engine.starting.launch import check_port, launch
from penstock.engine.starting.resolve import check_ranks, check_world, cores, resolve
from penstock.engine.starting.template import the_source
from penstock.engine.starting.worker import run_rank
from penstock.engine.state import Progress as ProgressNumbers
from penstock.engine.story.origin import record_origin
from penstock.engine.survive import supervise, survives
from penstock.store import (
    Manifest,
    Run,
    append_event,
    check_format,
    create_run,
    current_writer,
    list_snapshots,
    new_run_folder,
    read_manifest,
    save_config,
)

Progress = Callable[[float, str], None]

#: Sections a resumed run may change; all else decides what the state means or what was already computed, and is a fork's to change (`story/fork.py`).
CHANGEABLE = (
    "train.steps", "batch.micro", "data.skip", "eval.", "snapshot.", "survive.", "elastic.", "metrics.", "cost.", "alerts.", "layout.", "exchange.",
    "balance.", "compile.", "run.device", "run.threads", "optim.lr", "optim.muon_lr", "optim.weight_decay", "optim.clip", "optim.schedule",
    "optim.decay", "optim.min_lr", "optim.warmup",
)  # fmt: skip
#: Longest wait for the lead rank to prepare a corpus below torchrun.
PREPARE_DEADLINE = timedelta(hours=24)
#: Longest stay of a lead that could not make the run, for the others to hear of it; they wait for nothing else.
HEARD_S = 5.0


def start_run(config: Config, label: str, command: str, nproc: int, folder: Path | None, progress: Progress | None) -> dict[str, Any]:
    """Make a new run from `config` and train it; return its summary (an empty one on ranks that do not lead)."""
    if under_launcher():
        return _as_rank(config, lambda: make_run(config, label, command, folder, progress))
    if nproc > 1:
        the_source()  # before anything is computed here
    check_ranks(nproc, config.run.device, cores())
    check_world(config, nproc)
    if nproc > 1 or survives(config, nproc):
        check_port(config.layout.port)
    return train_here(make_run(config, label, command, folder, progress), nproc)


def resume_run(run: Run, values: dict[str, Any], nproc: int, progress: Progress | None) -> dict[str, Any]:
    """Go on with a run from its newest snapshot, with some settings changed; return its summary."""
    check_format(run)
    snapshots = list_snapshots(run.folder)
    if not snapshots:
        raise UserError(f"{run.path} has no snapshot to go on from; start it anew with `penstock train {run.path}/config.toml`")
    manifest = read_manifest(snapshots[-1])
    due = due_after(run, manifest)
    before = settings_at(run.config(), due, manifest)
    config = changed(before, values)
    if before.data.skip != config.data.skip:
        check_unread(before.data.skip, config.data.skip, _first_unread(before, manifest))

    def accept() -> Run:
        if writer := current_writer(run.path):  # below a launcher the lead alone asks: asking takes the lock for a moment
            raise UserError(f"{run.path} is being written by {writer}; wait for it to end, or stop it")
        prepare(config.data, progress=progress)
        tell_changes(run, before, config, values.keys() & {name for one in due for name in one.settings})
        save_config(run, config)
        record_origin(run)
        return run

    if under_launcher():
        return _as_rank(config, accept)
    if nproc > 1:
        the_source()
    check_ranks(nproc, config.run.device, cores())
    check_world(config, nproc)
    return train_here(accept(), nproc)


def make_run(config: Config, label: str, command: str, folder: Path | None, progress: Progress | None) -> Run:
    """Prepare the corpus, resolve the config, and create the run's folder; what is refused beforehand leaves none."""
    corpus = prepare(config.data, progress=progress)
    config = resolve(config, corpus, cores())
    # Both refuse a text of less than one sequence.
    batch_plan(config, corpus, ProgressNumbers())
    validation_windows(config, corpus)
    identity = {"command": command, "data": corpus.summary, "data_digest": corpus.digest, "source": label}
    run = create_run(config, folder or new_run_folder(config, label), identity)
    record_origin(run)
    corpus.tokenizer.save(run.path / "tokenizer")
    return run


def train_here(run: Run, nproc: int) -> dict[str, Any]:
    """Train on this host: one rank in this process, or several through the launcher; with a supervisor also one is in a process of its own."""
    config = run.config()
    watched = survives(config, nproc)
    if nproc > 1 or watched:
        the_source()  # which is not to have the monitor's threads
    show_page(run)
    with reported(run), monitored(run):
        if nproc == 1 and not watched:
            return run_rank(run, World(device=join_world(config.run.device, 1).device))
        (supervise if watched else launch)(run, nproc, config.layout.port)
        return run.read("summary.json")


def changed(config: Config, values: dict[str, Any]) -> Config:
    """The config with some settings changed; refuses those that would make it another run."""
    new = with_values(config, values)
    before, after = flat(config), flat(new)
    for name, value in after.items():
        if value != before[name] and not name.startswith(CHANGEABLE):
            raise ConfigError(
                f"{name} was {before[name]!r} when the run began and cannot become {value!r} on resuming: "
                "its snapshots hold that model, data and optimizer; leave it out, or fork the run (`penstock runs fork`), which makes it another one"
            )
    return new


def _first_unread(config: Config, manifest: Manifest) -> int:
    """The first sample that the step after a snapshot reads."""
    numbers = ProgressNumbers(**manifest.numbers)
    n = (manifest.step - numbers.since) * config.batch.global_
    return int(parse_skip(config.data.skip).nth(numbers.drawn, np.array(n)))


def tell_changes(run: Run, before: Config, after: Config, instead: Collection[str] = ()) -> None:
    """Write the settings that a resumed run changes into its history, and those that it has `instead` of what was due (`requests/agenda.py`)."""
    old, new = flat(before), flat(after)
    changes = {name: [old[name], value] for name, value in new.items() if value != old[name] or name in instead}
    if changes:
        text = ", ".join(f"{name} {was!r} → {becomes!r}" if was != becomes else f"{name} {was!r} stays" for name, (was, becomes) in changes.items())
        append_event(run.path, "change", text, list_snapshots(run.folder)[-1].step, settings=changes)


def _as_rank(config: Config, make: Callable[[], Run]) -> dict[str, Any]:
    """Below torchrun: the lead makes the run, all train it. A rank that fails leaves without farewell, which the others might not answer."""
    world = join_world(config.run.device, config.layout.timeout_s)
    check_world(config, world.size)
    run = _agree_on_run(world, make)
    with ExitStack() as beside:
        if world.is_lead:
            beside.enter_context(reported(run))
            beside.enter_context(monitored(run))
        result = run_rank(run, world)
    leave_world(world)
    return result


def _agree_on_run(world: World, make: Callable[[], Run]) -> Run:
    if world.size == 1:
        return make()
    store = dist.distributed_c10d._get_default_store()
    if not world.is_lead:
        store.wait(["penstock/run"], PREPARE_DEADLINE)
        answer = store.get("penstock/run").decode()
        store.add("penstock/heard", 1)
        if answer.startswith("failed"):
            raise EchoedError("rank 0 could not make the run; its message says why")
        return Run(Path(answer.removeprefix("made ")))
    try:
        run = make()
    except BaseException:
        store.set("penstock/run", "failed")
        _wait_until_heard(store, world.size - 1)
        raise
    store.set("penstock/run", f"made {run.path.resolve()}")
    return run


def _wait_until_heard(store: Any, others: int) -> None:
    """Stay till the others know that this rank has failed: the store may be this process's, and end with it."""
    end = time.monotonic() + HEARD_S
    while store.add("penstock/heard", 0) < others and time.monotonic() < end:
        time.sleep(0.02)
