"""A run in one row of the list: its state, how far it is, how it does; made of the ends of a few files, as a list has a thousand of them.

What is damaged makes a row of the state "damaged" that says why, and a run that is being made or written is told as far as it is there. Cost: 0.3 to
0.5 ms. When not to use it: for more than a list shows.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict

from penstock.config import UserError
from penstock.monitor.alerts import BOOK, read_alerts
from penstock.monitor.series.rows import parts_of, rank_folders
from penstock.monitor.series.tail import first_about
from penstock.store.places.locks import HOLDER, current_writer
from penstock.store.runs import Run, run_state

#: Files whose change makes a row old.
_FILES = ("run.json", "config.toml", "summary.json", "history.jsonl", BOOK, "metrics/train.jsonl", "metrics/rank-00000", "snapshots", HOLDER)
#: Bytes of a file in which its last line is.
_LAST_BYTES = 1 << 13
_SETTING = re.compile(r"^(\w+) = (\d+)$", re.MULTILINE)


class Row(TypedDict):
    """A run in a list; None where it is not known. `created` and `updated` are unix seconds, `tokens_per_s` that of the whole run."""

    id: str
    name: str
    state: str
    created: float
    updated: float
    step: int
    steps: int | None
    loss: float | str | None
    val_loss: float | str | None
    tokens: int | None
    tokens_per_s: float | str | None
    parameters: int | None
    ranks: int | None
    alerts: dict[str, int]
    label: str
    error: str | None


@dataclass(frozen=True)
class Signature:
    """What changes with the files that a row is made of, and with the end of the process that writes the run: times (ns) and sizes, None: no file."""

    stamps: tuple[tuple[int, int] | None, ...]
    written: bool

    @property
    def changed(self) -> float:
        """When a file changed last (unix seconds)."""
        return max((stamp[0] for stamp in self.stamps if stamp), default=0) / 1e9


def signature_of(folder: Path) -> Signature:
    """The signature of the run in a folder as of now."""
    root = str(folder)
    stamps = tuple(_stamp(f"{root}/{name}") for name in _FILES)
    return Signature(stamps, stamps[-1] is not None and current_writer(folder) is not None)


def row_of(id: str, folder: Path, signature: Signature) -> Row:
    """The row of the run in a folder that has this signature; damage is told in it."""
    row = _empty(id, folder.name, signature)
    try:
        _fill(row, Run(folder), signature)
    except UserError as error:
        row["state"], row["error"] = "damaged", str(error)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        row["state"], row["error"] = "damaged", f"{folder.name} cannot be read: {error}"
    return row


def alerts_of(folder: Path) -> dict[str, int]:
    """How many alerts of each level are open; those that are acknowledged count, those that are silenced do not."""
    levels = Counter(alert.level for alert in read_alerts(folder).alerts.values() if alert.state in ("open", "acknowledged"))
    return {level: levels.get(level, 0) for level in ("critical", "warning", "notice")}


def setting(folder: Path, section: str, key: str) -> int | None:
    """A whole number from the run's `config.toml`, without reading all of it as TOML (which takes 3 ms); None if it does not stand there."""
    try:
        text = (folder / "config.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    _, found, after = text.partition(f"[{section}]\n")
    within = after.partition("\n[")[0] if found else ""
    return next((int(match[2]) for match in _SETTING.finditer(within) if match[1] == key), None)


def seconds_of(moment: Any) -> float:
    """Unix seconds of a time as files have it, in words or as a number; 0 for what is none."""
    if isinstance(moment, float):
        return moment
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(str(moment)).timestamp()
    return 0.0


def last_line(file: Path) -> dict[str, Any]:
    """The last whole JSON object of a file of lines; empty if there is none."""
    with suppress(OSError), open(file, "rb") as lines:
        end = lines.seek(0, os.SEEK_END)
        lines.seek(max(0, end - _LAST_BYTES))
        for line in reversed(lines.read().splitlines()):
            with suppress(ValueError):
                told = json.loads(line)
                if isinstance(told, dict):
                    return told
    return {}


def _empty(id: str, name: str, signature: Signature) -> Row:
    first = min((stamp[0] for stamp in signature.stamps if stamp), default=0) / 1e9
    return Row(
        id=id, name=name, state="unfinished", created=first, updated=signature.changed, step=0, steps=None, loss=None, val_loss=None, tokens=None,
        tokens_per_s=None, parameters=None, ranks=None, alerts={"critical": 0, "warning": 0, "notice": 0}, label="", error=None,
    )  # fmt: skip


def _fill(row: Row, run: Run, signature: Signature) -> None:
    there = {name: stamp is not None for name, stamp in zip(_FILES, signature.stamps)}
    if not there["run.json"]:
        raise UserError(f"{run.path / 'run.json'} is missing: the run was never made whole, or lost its identity; restore it or remove the folder")
    identity, summary, last = _object(run, "run.json"), _object(run, "summary.json"), last_line(run.path / "metrics" / "train.jsonl")
    state = "running" if signature.written else run_state(run)
    row["created"] = seconds_of(identity.get("created")) or row["created"]
    row["state"], row["label"] = "unfinished" if state == "new" else state, str(identity.get("source", ""))
    row["steps"] = setting(run.path, "train", "steps")
    ended = {} if state == "running" or (last.get("step") or 0) > (summary.get("step") or 0) else summary
    told = last | {name: value for name, value in ended.items() if value is not None}
    row["step"], row["loss"] = int(told.get("step") or 0), _number(last.get("loss"))
    row["tokens"], row["tokens_per_s"] = _whole(told.get("tokens")), _number(told.get("tokens_per_s"))
    row["val_loss"] = _number(last_line(run.path / "metrics" / "eval.jsonl").get("val_loss", ended.get("val_loss")))
    row["parameters"], row["ranks"] = _whole(summary.get("parameters")), _ranks(run.path / "metrics")
    if there[BOOK]:
        row["alerts"] = alerts_of(run.path)


def _object(run: Run, file: str) -> dict[str, Any]:
    told = run.read(file)
    if not isinstance(told, dict):
        raise UserError(f"{run.path / file} is damaged (it holds no object); restore it or start a new run")
    return told


def _ranks(metrics: Path) -> int | None:
    """The ranks of the newest generation of rows."""
    for path in list(rank_folders(metrics).values())[:1]:
        for _, _, part in reversed(parts_of(path)):
            if about := first_about(part):
                return about.ranks
    return None


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else None
