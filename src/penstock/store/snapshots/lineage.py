"""From which snapshots one comes: its parents, as far as the run's folder still knows them.

Manifests that are there name their parents; of those that retention has dropped the history tells id, step and parent. A fork's folder begins with
the snapshot it was forked from, one that was imported with the snapshot that had been exported. Cost: the index, and reading the history once.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.store.places.folder import Folder
from penstock.store.snapshots.index import indexed
from penstock.store.snapshots.manifest import Manifest
from penstock.store.story.history import read_history


@dataclass(frozen=True)
class Link:
    """A snapshot in a line: its step, None where nobody knows it any more, and whether its manifest is in the folder."""

    id: str
    step: int | None
    here: bool


def lineage(folder: Folder, manifest: Manifest) -> list[Link]:
    """A snapshot of the folder, its parent, and so on to the oldest that is known."""
    parents = {}
    for event in read_history(folder).events:
        told = event.data.get("imported_from", event.data)
        name = told.get("id" if event.kind == "snapshot" else "snapshot") if isinstance(told, dict) else None
        if event.kind in ("snapshot", "fork", "note") and isinstance(name, str):
            parents[name] = told.get("parent"), event.step
    rows = {row.id: (row.parent, row.step) for row in indexed(folder).rows}
    parents |= rows
    parents[manifest.id] = manifest.parent, manifest.step
    line: list[Link] = []
    seen: set[str] = set()
    at: str | None = manifest.id
    while at is not None and at not in seen:
        seen.add(at)
        parent, step = parents.get(at, (None, None))
        line.append(Link(at, step, at in rows or at == manifest.id))
        at = parent if isinstance(parent, str) else None
    return line


def common_ancestor(one: list[Link], other: list[Link]) -> Link | None:
    """The newest snapshot that two lines share."""
    known = {link.id for link in other}
    return next((link for link in one if link.id in known), None)
