"""A run's story as rows: its snapshots and everything else that happened, in the order of the history.

The history tells of every snapshot that ever was; the manifests, of those that are there. Rows of snapshots join both: what is there is taken from
the manifest, what was dropped from its event, and a snapshot whose writer died before the event is told last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.store.snapshots.index import as_number, indexed, row_of
from penstock.store.snapshots.manifest import Manifest
from penstock.store.snapshots.retention import read_pins
from penstock.store.story.history import Event, append_event, read_history

_TOLD = ("id", "parent", "full", "loss", "val_loss", "state_bytes", "added_bytes", "stored_bytes")


@dataclass(frozen=True)
class Told:
    """A snapshot in a run's story; `state` is "here", "dropped" by retention, "lost" or "damaged"."""

    id: str
    parent: str | None
    full: bool
    loss: float | None
    val_loss: float | None
    state_bytes: int
    added_bytes: int
    stored_bytes: int
    state: str
    pinned: bool
    newest: bool


@dataclass(frozen=True)
class Entry:
    """A line of the story: an event, or a snapshot (`kind` "snapshot")."""

    seq: int | None
    time: str
    kind: str
    step: int | None
    text: str
    data: dict[str, Any]
    snapshot: Told | None = None


@dataclass(frozen=True)
class Timeline:
    """A run's story, oldest first, and what is wrong with its telling; `head` is the hash of the last of its `events`."""

    entries: list[Entry]
    damage: list[str]
    notes: list[str]
    events: int
    head: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        snapshots = [{"step": entry.step, "time": entry.time} | vars(entry.snapshot) for entry in self.entries if entry.snapshot]
        events = [{name: value for name, value in vars(entry).items() if name != "snapshot"} for entry in self.entries if entry.seq]
        return {"snapshots": snapshots, "events": events, "head": self.head, "damage": self.damage, "notes": self.notes}


def tell_snapshot(run: Path, manifest: Manifest, how: str = "saved") -> Event:
    """Add to a run's history that a snapshot has been published, with what remains known of it when it is dropped."""
    row = row_of(manifest)._asdict()
    return append_event(run, "snapshot", f"{how} as {manifest.id[:12]}", manifest.step, **{name: row[name] for name in _TOLD})


def run_timeline(run: Path) -> Timeline:
    """The story of a run."""
    history, found, pins = read_history(run), indexed(run), read_pins(run)
    rows = {row.id: row for row in found.rows}
    states = dict.fromkeys(history.dropped, "dropped") | dict.fromkeys(rows, "here")
    damaged = {Path(file).stem[-12:] for file in found.damaged}
    newest = found.rows[-1].id if found.rows else ""
    entries = []
    for event in history.events:
        id = str(event.data.get("id", "")) if event.kind == "snapshot" else ""
        told = None
        if id:
            state = states.get(id, "damaged" if id[:12] in damaged else "lost")
            told = _told(rows.pop(id)._asdict() if id in rows else event.data, state, id in pins, id == newest)
        entries.append(Entry(event.seq, event.time, event.kind, event.step, event.text, event.data, told))
    for row in rows.values():
        told = _told(row._asdict(), "here", row.id in pins, row.id == newest)
        entries.append(Entry(None, row.created, "snapshot", row.step, "its writer died before it could be told", {}, told))
    damage = history.damage + list(found.damaged.values())
    head = history.events[-1].hash if history.events else ""
    return Timeline(entries, damage, [history.torn] if history.torn else [], len(history.events), head)


def _told(facts: dict[str, Any], state: str, pinned: bool, newest: bool) -> Told:
    parent = facts.get("parent")
    return Told(
        str(facts["id"]),
        str(parent) if parent else None,
        bool(facts.get("full")),
        as_number(facts.get("loss")),
        as_number(facts.get("val_loss")),
        int(as_number(facts.get("state_bytes")) or 0),
        int(as_number(facts.get("added_bytes")) or 0),
        int(as_number(facts.get("stored_bytes")) or 0),
        state,
        pinned,
        newest,
    )
