"""A running run's settings changed between two steps, by all ranks together: the command `change` (`commands.py`).

    the lead plans (`changes.py`) and tells all ranks   refused here: nothing was touched
    → where parts are built anew: a new core beside the old one, and the state carried or grown into it
    → the lead writes the history and `config.toml`, and all agree that it could
    → every rank takes up the new parts, by itself; the old ones are let go

Up to the agreement the old parts are as they were, and whatever is refused or fails until then leaves the run bit for bit undisturbed. After it
nothing is exchanged that could fail halfway. Whatever layout holds the state, growing works on whole tensors, gathered one at a time.

Samples go on where the run was: with batches of another size the next sample is the one that would have come (`data/batches.py`). Cost: the state
twice in memory, its bytes over the network as far as they move (all of them when it grows), and compiling where that is on. When not to use it: to
shrink what should not be lost; a fork leaves the run as it is.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from penstock.config import Config, UserError, parse_config
from penstock.data import check_unread
from penstock.engine.build import Core, Parts, batch_plan, build_core
from penstock.engine.evaluate import validation_windows
from penstock.engine.exchange import apart_of
from penstock.engine.requests.agenda import COMMAND
from penstock.engine.requests.changes import ChangePlan, plan_change
from penstock.engine.requests.commands import Answer, Command
from penstock.engine.requests.grow_state import GrownState
from penstock.engine.saving import note_choices
from penstock.engine.state import Progress
from penstock.engine.transition import StateMap, carry_state
from penstock.engine.tune.micro import free_bytes
from penstock.engine.tune.replan import Watch
from penstock.parallel.placement import Placement
from penstock.parallel.weights import assemble, own_part
from penstock.store import append_event, save_config

#: Parts that stay what they are when a core is built anew.
STAY = ("timer", "stop", "notes", "inbox", "probes")


def change_run(parts: Parts, command: Command) -> Answer:
    """Change settings as a command says, or tell what that would come to; all ranks must call it. Raises `UserError` on all of them if refused."""
    given = command.arguments
    plan = agreed_plan(parts, given["values"])
    if given.get("dry_run"):
        return Answer("done", plan.sentence(), data=plan.as_dict())
    if plan.loses and not given.get("accept_loss"):
        raise UserError(f"{', '.join(plan.settings)} would lose something: {'; '.join(plan.loses)}; give --yes to do it all the same")
    apply(parts, plan, command.who)
    return Answer("done", plan.sentence(), data=plan.as_dict(), told=True)


def agreed_plan(parts: Parts, values: dict[str, Any]) -> ChangePlan:
    """The plan of a change, the lead's on all ranks; raises `UserError` on all of them."""
    frees = parts.world.gather_numbers(free_bytes(parts.world), "change")
    shapes = {name: placement.shape for name, placement in StateMap.of(parts).placements.items()}

    def plan(changes: dict[str, Any]) -> ChangePlan:
        apart = apart_of(parts.reducer) is not None
        return plan_change(parts.config, changes, parts.progress.step, parts.world.size, parts.world.nodes, shapes, min(frees), apart)

    told: dict[str, Any] = {}
    if parts.world.is_lead:
        try:
            told = {"config": plan(values).config.tree()}
        except UserError as error:
            told = {"refused": str(error)}
        except Exception as error:  # a fault of ours in planning must not end the run
            traceback.print_exc(file=sys.stderr)
            told = {"refused": f"the change could not be planned ({type(error).__name__}: {error})"}
    told = json.loads(parts.world.share(json.dumps(told)))
    if "refused" in told:
        raise UserError(told["refused"])
    return plan(parse_config(told["config"]).tree())


def apply(parts: Parts, plan: ChangePlan, who: str, why: str = "", **more: Any) -> None:
    """Go on with the settings of a plan; all ranks must call it. The history tells `why` in place of the settings, if it is given, and `more`."""
    progress = _progress(parts, plan.config)
    fresh = build_anew(parts, plan, progress) if plan.builds else None
    _commit(parts, plan, who, why or plan.sentence(), more)
    before, parts.config = parts.config, plan.config
    parts.progress.since, parts.progress.drawn = progress.since, progress.drawn
    if not parts.ends_at_until and parts.until == before.train.steps:
        parts.until = plan.config.train.steps
    if fresh is not None:
        for name in (field.name for field in fields(fresh) if field.name not in STAY):
            setattr(parts, name, getattr(fresh, name))
        parts.watch = Watch()
    else:
        parts.plan = batch_plan(plan.config, parts.corpus, parts.progress)
    parts.optimizer.follow(plan.config.optim)
    parts.journal.follow(plan.config)
    parts.saving.follow(plan.config)
    if fresh is not None:
        del fresh
        gc.collect()  # modules and their hooks refer to each other, and hold the old state
        if parts.tuner.settled:
            parts.compile(parts.journal.warn)
    parts.peers.keep_anew(parts)


def build_anew(parts: Parts, plan: ChangePlan, progress: Progress) -> Core:
    """A core for the plan's settings, with the state of this one; all ranks must call it. Raises `UserError` on all of them if it cannot be."""
    held, before = parts.tensors(), StateMap.of(parts)
    samples = batch_plan(plan.config, parts.corpus, progress)
    fresh = build_core(plan.config, parts.world, samples, parts.stop, parts.journal.warn, progress, fresh=False)
    new = fresh.tensors()
    grown = set(plan.grown.fit.anew) if plan.grown else set()
    averages = {name for name in new if name.startswith("ema.") and name not in held}
    ranks = range(parts.world.size)
    missing = carry_state(fresh, before, {parts.world.rank: held}, {rank: (rank,) for rank in ranks}, leave=grown | averages)
    assert not missing, f"a change of settings lost {missing}"
    with torch.no_grad():
        if plan.grown is not None:
            _grow(parts, before.placements, plan.grown, fresh)
        for name in averages - {"ema.updates"}:
            new[name].copy_(new["model." + name.removeprefix("ema.")])
    return fresh


def _grow(parts: Parts, before: Mapping[str, Placement], grown: GrownState, fresh: Core) -> None:
    """Make the tensors of a grown state, each from whole ones of the old, and keep this rank's parts; all ranks must call it."""
    held, new, after = parts.tensors(), fresh.tensors(), StateMap.of(fresh).placements

    def read(name: str) -> Tensor:
        return assemble(held[name].detach(), before[name], parts.mesh, "change")

    for name, value in sorted(grown.values(read).items()):
        new[name].copy_(own_part(value().to(new[name].device), after[name], fresh.mesh))


def _progress(parts: Parts, config: Config) -> Progress:
    """The plain numbers to go on with: samples where they were, and choices as far as they hold for the new settings."""
    note_choices(parts)
    numbers, step = Progress(**parts.progress.numbers()), parts.progress.step
    now, then = (batch_plan(one, parts.corpus, numbers) for one in (parts.config, config))
    if (now.global_batch, now.context) != (then.global_batch, then.context):
        numbers.since, numbers.drawn = step, now.drawn_before(step, then)
    check_skipped(parts, config)
    validation_windows(config, parts.corpus)  # refuses a context longer than the held-out text
    if parts.config.model.moe.experts != config.model.moe.experts or parts.config.model.layers != config.model.layers:
        numbers.slots = {}
    numbers.micro = parts.tuner.size
    return numbers


def check_skipped(parts: Parts, config: Config) -> None:
    """Raise `UserError` where another list of samples to leave out would change which ones have been read, or counts other windows."""
    before, after = parts.config.data.skip, config.data.skip
    if parts.config.model.context != config.model.context and after:
        raise UserError(
            f"model.context cannot change while data.skip = {after!r} counts windows of {parts.config.model.context} tokens; all of them that were "
            "read are behind, so set data.skip = '' with it"
        )
    if before != after and parts.config.model.context == config.model.context:
        check_unread(before, after, int(parts.plan.sample_ids(parts.progress.step)[0]))


def _commit(parts: Parts, plan: ChangePlan, who: str, text: str, more: Mapping[str, Any]) -> None:
    """Write the change into history and config on the lead; raises `UserError` on all ranks if the disk refuses."""
    refused = ""
    if parts.world.is_lead:
        try:
            append_event(parts.run.path, "change", text, plan.step, command=COMMAND, who=who, **plan.as_dict(), **more)
            save_config(parts.run, plan.config)
        except (UserError, OSError) as error:
            refused = str(error)
            undone = {name: [becomes, was] for name, (was, becomes) in plan.settings.items()}
            parts.saving.tell_history("change", f"taken back, as it could not be written: {refused}", plan.step, settings=undone)
    if parts.world.any(bool(refused), "change"):
        raise UserError(refused or "the change could not be written to the run's folder")
