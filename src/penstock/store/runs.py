"""A run is a folder: created once, found by name or path, listed, and traceable to what made it.

    config.toml    the resolved configuration, which alone reproduces the run
    run.json       identity, code version, environment, corpus
    tokenizer/     the tokenizer, so that a run can speak without its corpus
    metrics/       rows of numbers;            events/  TensorBoard
    snapshots/     the state, as manifests;    packs/   their content
    history.jsonl  what happened;              index.sqlite, pins.json, locks
    summary.json   how it ended;               report.html  the page to look at

Files are replaced atomically (written beside, flushed to the disk, renamed), so a reader or a crash never sees
half of one.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.config import Config, UserError, disk_errors, load_config, nearest, to_toml
from penstock.store.places.folder import Folder, LocalFolder
from penstock.store.places.locks import current_writer
from penstock.store.snapshots.manifest import list_snapshots
from penstock.store.story.history import last_event


@dataclass(frozen=True)
class Run:
    """Handle of a run's folder."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: its folder's."""
        return self.path.name

    @property
    def folder(self) -> Folder:
        """Where its snapshots are."""
        return LocalFolder(self.path)

    def config(self) -> Config:
        """The resolved configuration the run was made with; raises `UserError` if damaged."""
        return load_config(self.path / "config.toml")

    def read(self, file: str) -> dict[str, Any]:
        """A JSON file of the run, or an empty dictionary where it is missing; raises `UserError` if damaged."""
        path = self.path / file
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged ({error}); restore it or start a new run") from None

    def write(self, file: str, content: dict[str, Any]) -> None:
        """Replace a JSON file of the run atomically; raises `UserError` when the disk is full."""
        write_text(self.path / file, json.dumps(content, indent=2, default=str) + "\n")

    def update(self, file: str, **values: Any) -> None:
        """Replace some keys of a JSON file of the run."""
        self.write(file, self.read(file) | values)


def create_run(config: Config, folder: Path, identity: dict[str, Any]) -> Run:
    """Make the run's folder with `config.toml` and `run.json`; refuse one that already holds a run."""
    if (folder / "run.json").exists():
        raise UserError(f"{folder} already holds a run; go on with `penstock resume {folder}`, or choose another --run-dir or run.name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; choose another --run-dir")
    with disk_errors(folder, "creating the run"):
        (folder / "snapshots").mkdir(parents=True)
        write_text(folder / "config.toml", to_toml(config))
        run = Run(folder)
        run.write("run.json", {"run": folder.name, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | identity)
    return run


def run_state(run: Run) -> str:
    """`running` while a process holds the writer's lock; else how it ended: `finished`, `interrupted` or `failed`; `new` before it began."""
    if current_writer(run.path):
        return "running"
    summary, saved, last = run.read("summary.json"), list_snapshots(run.path), last_event(run.folder)
    if last is not None and last.kind == "failure":
        return "failed"
    if summary and (not saved or saved[-1].step == summary.get("step")):  # else it went on after that
        return str(summary.get("state", "failed"))
    return "failed" if summary or last is not None or any(snapshot.step for snapshot in saved) else "new"


def save_config(run: Run, config: Config) -> None:
    """Replace the run's resolved configuration."""
    write_text(run.path / "config.toml", to_toml(config))


def new_run_folder(config: Config, label: str) -> Path:
    """A fresh folder below `run.dir`: `run.name`, or the label with date, time and a counter."""
    parent = Path(config.run.dir)
    if config.run.name:
        return parent / config.run.name
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", label) + time.strftime("-%Y%m%d-%H%M%S")
    candidates = [stem] + [f"{stem}-{i}" for i in range(2, 1000)]
    return next(parent / name for name in candidates if not (parent / name).exists())


def find_run(name: str | Path, runs_dir: str | Path = "runs") -> Run:
    """The run at a folder's path, or of a name below `runs_dir`; 'last' is the newest. Raises `UserError`."""
    for folder in (Path(name), Path(runs_dir) / name):
        if (folder / "run.json").is_file():
            return Run(folder)
    runs = list_runs(runs_dir)
    if str(name) == "last" and runs:
        return runs[-1]
    known = [run.name for run in runs]
    raise UserError(f"no run '{name}' here or below {runs_dir}/{nearest(str(name), known)}; `penstock runs` lists them")


def check_format(run: Run) -> None:
    """Raise `UserError` if the run's snapshots are those of a version that stored them in folders."""
    if next((run.path / "snapshots").glob("step-*/snapshot.json"), None) and not any((run.path / "snapshots").glob("step-*.json")):
        wrote = run.read("run.json").get("environment", {}).get("penstock", "that wrote it")
        raise UserError(f"the snapshots of {run.path} have format 2, and this version of Penstock reads 3; use the version that wrote them, {wrote}")


def list_runs(runs_dir: str | Path = "runs") -> list[Run]:
    """All runs below a folder, oldest first."""
    found = [Run(file.parent) for file in Path(runs_dir).glob("*/run.json")]
    return sorted(found, key=lambda run: (run.path / "run.json").stat().st_mtime)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically; raises `UserError` when the disk is full or refuses."""
    partial = path.with_name(path.name + ".partial")
    try:
        with disk_errors(path.parent, f"writing {path.name}"), open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
