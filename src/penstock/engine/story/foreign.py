"""States for other libraries and from them: a snapshot as torch's distributed checkpoint or as safetensors, and either as a run again.

Beside the library's own files an exported folder has `penstock.json` (step, plain numbers, and what made the state) and the tokenizer, so that it
becomes a run again that goes on where the snapshot was. A folder without them, as other programs write it, is a state only: then a config says what
run it is to be of, and it begins at step 0. Names must be ours: `model.…`, `optim.…`, `ema.…`. What does not fit the config is refused by name, or
with `partial` begins anew.

Cost: reading and writing the state once. Memory: a tensor, or a file's tensors (2 GiB) for safetensors. When not to use it: to bring models to
transformers (`penstock export`), or to copy a run (`penstock runs push`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from penstock.config import Config, UserError, changed_settings, load_config, parse_config
from penstock.data import load_tokenizer, prepare
from penstock.engine.starting.resolve import cores, resolve
from penstock.engine.starting.start import Progress as Report
from penstock.engine.state import Progress
from penstock.engine.story.fit import Fit, first_values, fit_of, outline_state
from penstock.engine.story.fork import said
from penstock.engine.story.origin import record_origin
from penstock.engine.story.settle import Settled, settle
from penstock.store import LocalFolder, Run, Snapshot, append_event, create_run, history_head, in_use, new_run_folder
from penstock.store.cells.contents import Contents
from penstock.store.formats import WRITERS, Foreign, open_foreign
from penstock.store.places.take_over import adopt, written_manifest
from penstock.store.places.whole import whole_folder
from penstock.store.snapshots.manifest import ID
from penstock.store.story.code import diffs_of, keep_diff

NOTE = "penstock.json"


@dataclass(frozen=True)
class Note:
    """What `penstock.json` says of an exported state; of other folders nothing, and step 0."""

    origin: dict[str, Any]
    numbers: dict[str, Any]
    about: dict[str, Any]

    @property
    def snapshot(self) -> str | None:
        """Id of the snapshot that was exported."""
        name = self.origin.get("snapshot")
        return name if isinstance(name, str) and ID.fullmatch(name) else None


def export_state(source: Snapshot, folder: Path, kind: str) -> dict[str, Any]:
    """Write a snapshot's whole state as a folder of `kind` ('dcp' or 'safetensors'); raises `UserError`."""
    if kind not in WRITERS:
        raise UserError(f"--format {kind} is none that states are written in; use {' or '.join(WRITERS)}")
    assert isinstance(source.folder, LocalFolder)
    run = source.folder.path
    with in_use(source):
        contents = Contents(source)
        manifest = contents.manifest
        with whole_folder(folder, "exporting a snapshot") as place:
            try:
                WRITERS[kind](place, contents.described, contents.read)
            except SafetensorError as error:
                raise UserError(f"could not write {folder}: {error}; name a folder on a disk with room for the state") from None
            shutil.copytree(run / "tokenizer", place / "tokenizer")
            for diff in diffs_of(manifest.about):
                if (run / diff).is_file():
                    (place / diff).parent.mkdir(exist_ok=True)
                    shutil.copyfile(run / diff, place / diff)
            origin = {"run": str(run.resolve()), "step": manifest.step, "snapshot": manifest.id, "created": manifest.created}
            note = {"origin": origin, "numbers": manifest.numbers, "about": manifest.about}
            (place / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return {"run": str(run), "step": manifest.step, "snapshot": manifest.id, "folder": str(folder), "format": kind, "tensors": len(manifest.tensors)}


def import_state(
    source: Path, config: str | None, sets: dict[str, Any], folder: Path | None, partial: bool, command: str, report: Report | None
) -> dict[str, Any]:
    """Make a run of a state in another library's folder; returns what was made. Raises `UserError` where it does not fit."""
    foreign, note = open_foreign(source), _note(source)
    before, settled = _settled(source, note, config, sets, report)
    target = folder or new_run_folder(settled.config, source.resolve().name)
    final = settled.with_tokenizer_in(target)
    fit = fit_of({name: shape for name, (shape, _) in foreign.described.items()}, final, settled.same_tokens)
    if fit.why and not partial:
        raise UserError(
            f"the state in {source} does not fit these settings: {fit.sentence()}; give --partial to keep what fits and begin the rest anew, or "
            "other settings (a folder with Hugging Face's names is `penstock import`'s)"
        )
    told = {"settings": changed_settings(before, final), "anew": sorted(fit.anew), "left_out": [*fit.left_out, *foreign.others]}
    identity = {"command": command, "source": str(source), **settled.data, "imported_from": {"folder": str(source.resolve())} | note.origin}
    with whole_folder(target, "importing a state") as place:
        run = create_run(final, place, identity)
        _fill(run, source, foreign, note, settled, fit, identity, told)
    numbers = {"step": note.numbers["step"], "steps": final.train.steps, "tensors": len(fit.kept) + len(fit.anew)}
    return {"run": str(target), "from": str(source)} | numbers | told


def _fill(run: Run, source: Path, foreign: Foreign, note: Note, settled: Settled, fit: Fit, identity: dict[str, Any], told: dict[str, Any]) -> None:
    """Everything that a run's folder has, the snapshot last."""
    record_origin(run)
    (settled.tokenizer or load_tokenizer(source / "tokenizer")).save(run.path / "tokenizer")  # and nothing else that lies in that folder
    for diff in diffs_of(note.about):
        if (source / diff).is_file():
            keep_diff(run.path, (source / diff).read_bytes())
    config = run.config()
    origin, step = {"imported_from": identity["imported_from"]}, note.numbers["step"]
    append_event(run.path, "note", f"imported from {source.resolve()}{said(told)}", step, **origin, **told)
    about = {"data": {"digest": settled.data.get("data_digest")}} | note.about | {"config": config.tree(), "history": history_head(run.path)} | origin
    manifest = written_manifest(run.path, step, _tensors(config, foreign, fit), note.numbers, about)
    adopt(run.path, replace(manifest, parent=note.snapshot), "imported")


def _tensors(config: Config, foreign: Foreign, fit: Fit) -> dict[str, Callable[[], Tensor]]:
    """How each tensor of the state is had, in the state's order."""
    outline = outline_state(config)
    values = first_values(config, fit.anew, lambda name: foreign.read(name) if name in fit.kept else None)

    def read(name: str) -> Tensor:
        tensor = foreign.read(name)
        return tensor.to(outline[name].dtype) if name in outline else tensor

    return {name: values[name] if name in values else lambda name=name: read(name) for name in [*outline, *(set(fit.kept) - outline.keys())]}  # type: ignore[misc]


def _settled(source: Path, note: Note, config: str | None, sets: dict[str, Any], report: Report | None) -> tuple[Config, Settled]:
    """The settings that the state was made with, if it says so, else those given; and what they become."""
    if note.about.get("config") and config is None:
        before = parse_config(note.about["config"], f"{source / NOTE}")
        digest = (note.about.get("data") or {}).get("digest")
        return before, settle(before, sets, source / "tokenizer", {"data_digest": digest} if digest else {}, report)
    if config is None:
        raise UserError(f"{source} does not say of what run it is (no {NOTE} in it); give a config or a preset, and settings with --set")
    asked = load_config(config, [f"{name}={json.dumps(value)}" for name, value in sets.items()])
    corpus = prepare(asked.data, progress=report)
    final = resolve(asked, corpus, cores())
    return final, Settled(final, {"data": corpus.summary, "data_digest": corpus.digest}, corpus.tokenizer)


def _note(source: Path) -> Note:
    """What is known of an exported state; raises `UserError` if it is damaged."""
    file = source / NOTE
    if not file.is_file():
        return Note({}, Progress().numbers(), {})
    try:
        note = TypeAdapter(Note).validate_json(file.read_bytes())
        numbers = TypeAdapter(Progress).validate_python(note.numbers)
    except (OSError, ValidationError) as error:
        raise UserError(f"{file} is damaged ({str(error).splitlines()[0]}); export the snapshot again") from None
    return replace(note, numbers=numbers.numbers())
