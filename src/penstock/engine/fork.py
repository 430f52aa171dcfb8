"""Forking: a new run that begins at any snapshot of another, with any setting changed, and goes on by `penstock resume`.

What may change where. A run that is *resumed* stays the run it was: its weights must be those that its model, optimizer, data and seed lead to, so
only settings that leave these alone may change (`start.py`, CHANGEABLE), and its history tells them. A *fork* is another run, with a folder and a
history of its own that begins with the snapshot it came from; the one it came from tells of it too. So every setting may change here, as long as
the state still fits:

- Other data, seed or batch: what comes is drawn in the order of the new settings, from the present step on. Other text is cut by the run's own
  tokenizer, as the weights know its tokens, unless another is named.
- Settings that change names or shapes of tensors (another model, optimizer or average), and another tokenizer, whose tokens mean something else to
  embedding and head: refused by the tensors' names, unless `partial`. Then what fits is kept, the rest begins anew (`fit.py`), and what
  no longer has a place is left out; all of it is listed, in the histories too.

The folder appears whole or not at all. Cost: links to the packs; with `partial` the new tensors are written.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.config import Config, UserError, disk_errors, parse_config, with_values
from penstock.data import Tokenizer, load_tokenizer, prepare
from penstock.engine.fit import Fit, first_values, fit_of
from penstock.engine.origin import record_origin
from penstock.engine.resolve import check_world, cores, resolve, settle_machine
from penstock.engine.start import Progress, flat
from penstock.models import resolve_model
from penstock.store import LocalFolder, Manifest, Run, Snapshot, append_event, create_run, history_head, in_use, new_run_folder
from penstock.store.code import diffs_of
from penstock.store.contents import Contents
from penstock.store.diff_text import named, shown
from penstock.store.manifest import write_manifest
from penstock.store.publish import closure
from penstock.store.take_over import begin_from, link_or_copy, link_packs, take_over

#: Settings of the data that change no tokens.
SAME_TOKENS = ("data.cache_dir", "data.workers", "data.document_mask")


@dataclass(frozen=True)
class Plan:
    """A fork that was found possible; `tokenizer` is None where it is the run's own, `told` what both histories say of it."""

    run: Run
    contents: Contents
    config: Config
    fit: Fit
    tokenizer: Tokenizer | None
    identity: dict[str, Any]
    told: dict[str, Any]


def fork_run(
    source: Snapshot, values: dict[str, Any], folder: Path | None, nproc: int, partial: bool, command: str, progress: Progress | None
) -> dict[str, Any]:
    """Make a new run from a snapshot, with settings changed; returns what was made. Raises `UserError` where the state does not fit."""
    assert isinstance(source.folder, LocalFolder)
    run = Run(source.folder.path)
    with in_use(source):
        contents = Contents(source)
        plan, target = _plan(run, contents, values, folder, progress)
        plan.identity["command"] = command
        check_world(plan.config, nproc)
        if plan.fit.why and not partial:
            raise UserError(
                f"the state of {source.path} does not fit these settings: {plan.fit.sentence()}; give --partial to keep what fits and begin the "
                "rest anew, or leave the settings as they were"
            )
        done = _make(plan, target)
    step, name, told = contents.manifest.step, contents.manifest.id, plan.told
    append_event(run.path, "fork", f"forked to {target.resolve()}{_said(told)}", step, snapshot=name, to=str(target.resolve()), **told)
    return {"run": str(target), "from": str(run.path), "step": step, "snapshot": name, "steps": plan.config.train.steps} | told | done


def recorded_config(manifest: Manifest, run: Run) -> Config:
    """The settings that made a snapshot; raises `UserError` if another version of Penstock recorded them."""
    return parse_config(manifest.about["config"], f"snapshot of step {manifest.step}") if manifest.about.get("config") else run.config()


def _plan(run: Run, contents: Contents, values: dict[str, Any], folder: Path | None, progress: Progress | None) -> tuple[Plan, Path]:
    """What the fork will be, and where."""
    manifest = contents.manifest
    before = recorded_config(manifest, run)
    config, data, tokenizer = _settled(run, before, values, progress)
    target = folder or new_run_folder(config, f"{run.path.resolve().name}-fork")
    if tokenizer is None and _other_tokens(before, config) and config.data.tokenizer in ("bpe", "chars"):
        config = with_values(config, {"data.tokenizer": str(target.resolve() / "tokenizer")})
    fit = fit_of({name: entry.shape for name, entry in manifest.tensors.items()}, config, tokenizer is None)
    old, new = flat(before), flat(config)
    settings = {name: [was, new[name]] for name, was in old.items() if was != new[name] and name != "run.name"}
    told = {"settings": settings, "anew": sorted(fit.anew), "left_out": fit.left_out}
    origin = {"run": str(run.path.resolve()), "step": manifest.step, "snapshot": manifest.id}
    return Plan(run, contents, config, fit, tokenizer, {"source": f"fork of {run.name}", **data, "forked_from": origin}, told), target


def _settled(run: Run, before: Config, values: dict[str, Any], progress: Progress | None) -> tuple[Config, dict[str, Any], Tokenizer | None]:
    """The fork's settings, what its `run.json` says of the data, and its tokenizer if that is not the run's own."""
    config, kept = with_values(before, {"run.name": ""} | values), load_tokenizer(run.path / "tokenizer")
    if not _other_tokens(before, config):
        config = with_values(config, {"model": resolve_model(config.model, kept.vocab_size).model_dump(by_alias=True)})
        known = run.read("run.json")
        return settle_machine(config, cores()), {key: known[key] for key in ("data", "data_digest") if key in known}, None
    own = (config.data.tokenizer, config.data.vocab) == (before.data.tokenizer, before.data.vocab)
    asked = with_values(config, {"data.tokenizer": str(run.path.resolve() / "tokenizer")}) if own else config
    corpus = prepare(asked.data, progress=progress)
    config = with_values(resolve(asked, corpus, cores()), {"data.tokenizer": config.data.tokenizer} if own else {})
    same = corpus.tokenizer.digest() == kept.digest()
    return config, {"data": corpus.summary, "data_digest": corpus.digest}, None if same else corpus.tokenizer


def _other_tokens(before: Config, after: Config) -> bool:
    """Whether a setting changed that decides the tokens of training."""
    old, new = flat(before), flat(after)
    return any(old[name] != new[name] for name in old if name.startswith("data.") and name not in SAME_TOKENS)


def _make(plan: Plan, target: Path) -> dict[str, int]:
    """Make the fork's folder beside its place, and move it there when it is whole."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; choose another --run-dir")
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(target.parent, "forking a run"):
            fork = create_run(plan.config, partial / target.name, plan.identity)
            done = _fill(plan, fork)
            os.replace(fork.path, target)
        return done
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(plan: Plan, fork: Run) -> dict[str, int]:
    """Everything that a run's folder has, the snapshot last."""
    manifest, run = plan.contents.manifest, plan.run
    record_origin(fork)
    if plan.tokenizer is None:
        shutil.copytree(run.path / "tokenizer", fork.path / "tokenizer")
    else:
        plan.tokenizer.save(fork.path / "tokenizer")
    for diff in diffs_of(manifest):
        if (run.path / diff).is_file() and not (fork.path / diff).exists():
            (fork.path / diff).parent.mkdir(exist_ok=True)
            link_or_copy(run.path / diff, fork.path / diff)
    begin_from(fork.path, run.path, manifest, f"forked from {run.path.resolve()}{_said(plan.told)}", **plan.told)
    if not plan.fit.why:
        done = link_packs(run.path, fork.path, manifest.packs)
        write_manifest(fork.folder, manifest)
        return done
    kept = {name: manifest.tensors[name] for name in plan.fit.kept}
    packs = {entry.pack for entry in closure((digest for entry in kept.values() for digest in entry.cells), manifest.chunks).values()}
    done = link_packs(run.path, fork.path, packs)
    values = first_values(plan.config, plan.fit.anew, lambda name: plan.contents.read(name) if name in kept else None)
    about = {"config": plan.config.tree(), "data": manifest.about.get("data"), "forked_from": plan.identity["forked_from"]}
    about |= {key: fork.read("run.json").get(key) for key in ("code", "environment")} | {"history": history_head(fork.path)}
    take_over(manifest, list(kept), values, fork.path, manifest.numbers | ({} if _same_experts(plan) else {"slots": {}}), about)
    return done


def _same_experts(plan: Plan) -> bool:
    """Whether experts placed by hand are still where the snapshot says."""
    return not any(name.startswith("model.") and ".experts." in name for name in [*plan.fit.anew, *plan.fit.left_out])


def _said(told: dict[str, Any]) -> str:
    """What changed, in words."""
    settings = [f"{name} {shown(was)} → {shown(becomes)}" for name, (was, becomes) in told["settings"].items()]
    parts = [("with", ", ".join(settings)), ("begun anew:", named(told["anew"])), ("left out:", named(told["left_out"]))]
    return "".join(f"; {what} {names}" for what, names in parts if names)
