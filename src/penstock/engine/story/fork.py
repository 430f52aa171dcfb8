"""Forking: a new run that begins at any snapshot of another, with any setting changed, and goes on by `penstock resume`.

What may change where. A run that is *resumed* stays the run it was: its weights must be those that its model, optimizer, data and seed lead to, so
only settings that leave these alone may change (`starting/start.py`, CHANGEABLE), and its history tells them. A *fork* is another run, with a folder
and a history of its own that begins with the snapshot it came from; the one it came from tells of it too. So every setting may change here, as long
as the state still fits:

- Other data, seed or batch: what comes is drawn in the order of the new settings, from the present step on. Other text is cut by the run's own
  tokenizer, as the weights know its tokens, unless another is named.
- Another structure of the model that the old one can grow into (`requests/grow_state.py`): the fork's function is the run's, or what is lost is said.
- Other settings that change names or shapes of tensors (another model, optimizer or average), and another tokenizer, whose tokens mean something
  else to embedding and head: refused by the tensors' names, unless `partial`. Then what fits is kept, the rest begins anew (`fit.py`; nothing is
  grown), and what no longer has a place is left out; all of it is listed, in the histories too.

The folder appears whole or not at all. Cost: links to the packs; with `partial` the new tensors are written.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.config import Config, UserError, changed_settings
from penstock.engine.requests.agenda import recorded
from penstock.engine.requests.grow_state import GrownState, grow_state
from penstock.engine.starting.resolve import check_world
from penstock.engine.starting.start import Progress
from penstock.engine.story.fit import Fit, first_values, fit_of
from penstock.engine.story.origin import origin_of, record_origin
from penstock.engine.story.settle import Settled, settle
from penstock.store import LocalFolder, Manifest, Run, Snapshot, append_event, create_run, history_head, in_use, new_run_folder
from penstock.store.cells.contents import Contents
from penstock.store.places.take_over import adopt, begin_from, link_or_copy, link_packs, remade
from penstock.store.places.whole import whole_folder
from penstock.store.snapshots.publish import closure
from penstock.store.story.code import diffs_of
from penstock.store.story.diff_text import named, shown


@dataclass(frozen=True)
class Plan:
    """A fork that was found possible; `told` is what both histories say of it, `identity` what its `run.json` does."""

    run: Run
    contents: Contents
    settled: Settled
    config: Config
    fit: Fit
    grown: GrownState | None
    #: Why the state cannot grow into these settings, where it does not fit them.
    ungrown: str
    identity: dict[str, Any]
    told: dict[str, Any]


def fork_run(
    source: Snapshot, values: dict[str, Any], folder: Path | None, nproc: int, partial: bool, command: str, progress: Progress | None
) -> dict[str, Any]:
    """Make a new run from a snapshot, with settings changed; returns what was made.

    Raises `UserError` where the state does not fit, or the layout not `nproc` ranks (0: whatever it will go on with).
    """
    assert isinstance(source.folder, LocalFolder)
    with in_use(source):
        contents, run = Contents(source), Run(source.folder.path)
        plan, target = _plan(run, contents, values, folder, command, progress, partial)
        if nproc:
            check_world(plan.config, nproc)
        if plan.fit.why and not partial:
            raise UserError(
                f"the state of {source.path} does not fit these settings: {plan.fit.sentence()} ({plan.ungrown}); give --partial to "
                "keep what fits and begin the rest anew, or leave the settings as they were"
            )
        with whole_folder(target, "forking a run") as place:
            done = _fill(plan, create_run(plan.config, place, plan.identity))
    step, name, told = contents.manifest.step, contents.manifest.id, plan.told
    untold = ""
    try:
        append_event(run.path, "fork", f"forked to {target.resolve()}{said(told)}", step, snapshot=name, to=str(target.resolve()), **told)
    except UserError as error:  # the fork is there, and says where it comes from
        untold = str(error)
    steps = {"step": step, "steps": plan.config.train.steps, "nproc": nproc}
    return {"run": str(target), "from": str(run.path), "snapshot": name} | steps | told | done | {"untold": untold}


def recorded_config(manifest: Manifest, run: Run) -> Config:
    """The settings that made a snapshot; raises `UserError` if another version of Penstock recorded them."""
    return recorded(manifest) if manifest.about.get("config") else run.config()


def said(told: dict[str, Any]) -> str:
    """What was changed, begun anew and left out, in words."""
    settings = [f"{name} {shown(was)} → {shown(becomes)}" for name, (was, becomes) in told["settings"].items()]
    parts = [("with", ", ".join(settings)), ("begun anew:", named(told["anew"])), ("left out:", named(told["left_out"]))]
    parts.append(("grown:", ", ".join(told.get("grown", []))))
    return "".join(f"; {what} {names}" for what, names in parts if names)


def _plan(
    run: Run, contents: Contents, values: dict[str, Any], folder: Path | None, command: str, progress: Progress | None, partial: bool
) -> tuple[Plan, Path]:
    """What the fork will be, and where."""
    manifest, made = contents.manifest, run.read("run.json")
    before = recorded_config(manifest, run)
    known = {name: value for name, value in made.items() if name in ("data", "data_digest")}
    settled = settle(before, values, run.path / "tokenizer", known, progress)
    target = folder or new_run_folder(settled.config, f"{run.path.resolve().name}-fork")
    config = settled.with_tokenizer_in(target)
    stored = {name: entry.shape for name, entry in manifest.tensors.items()}
    fit, grown, ungrown = fit_of(stored, config, settled.same_tokens), None, ""
    if fit.why and not partial:
        try:
            grown = grow_state(stored, before, config, settled.same_tokens)
            fit = grown.fit
        except UserError as error:
            ungrown = str(error)
    told = {"settings": changed_settings(before, config), "anew": [] if grown else sorted(fit.anew), "left_out": fit.left_out}
    told |= {"grown": [*grown.growth.preserves, *grown.growth.loses]} if grown else {}
    origin = {"run": str(run.path.resolve()), "step": manifest.step, "snapshot": manifest.id}
    identity = {"command": command, "source": f"fork of {run.name}", **settled.data, "forked_from": origin}
    return Plan(run, contents, settled, config, fit, grown, ungrown, identity, told), target


def _fill(plan: Plan, fork: Run) -> dict[str, int]:
    """Everything that a run's folder has, the snapshot last; returns what was linked and copied."""
    manifest, run = plan.contents.manifest, plan.run
    record_origin(fork)
    if plan.settled.tokenizer is None:
        shutil.copytree(run.path / "tokenizer", fork.path / "tokenizer")
    else:
        plan.settled.tokenizer.save(fork.path / "tokenizer")
    for diff in diffs_of(manifest.about):
        if (run.path / diff).is_file() and not (fork.path / diff).exists():
            (fork.path / diff).parent.mkdir(exist_ok=True)
            link_or_copy(run.path / diff, fork.path / diff)
    begin_from(fork.path, run.path, manifest, f"forked from {run.path.resolve()}{said(plan.told)}", **plan.told)
    if not plan.fit.why and plan.grown is None:
        done = link_packs(run.path, fork.path, manifest.packs)
        adopt(fork.path, manifest, "taken over")
        return done
    kept = {name: manifest.tensors[name] for name in plan.fit.kept}
    packs = {entry.pack for entry in closure((digest for entry in kept.values() for digest in entry.cells), manifest.chunks).values()}
    done = link_packs(run.path, fork.path, packs)
    read = plan.contents.read
    anew = first_values(plan.config, plan.fit.anew, lambda name: read(name) if name in kept else None)
    values = plan.grown.values(read) if plan.grown else anew
    about = origin_of(fork) | {"data": manifest.about.get("data"), "forked_from": plan.identity["forked_from"], "history": history_head(fork.path)}
    numbers = manifest.numbers | ({} if _same_experts(plan.fit) else {"slots": {}})
    adopt(fork.path, remade(manifest, list(kept), values, fork.path, numbers, about), "grown" if plan.grown else "taken over in part")
    return done


def _same_experts(fit: Fit) -> bool:
    """Whether experts placed by hand are still where the snapshot says."""
    return not any(name.startswith("model.") and ".experts." in name for name in [*fit.anew, *fit.left_out])
