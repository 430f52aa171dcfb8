"""What `penstock runs show`, `verify`, `gc`, `push` and `pull` say: a snapshot as a dictionary, and results as a few lines for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.cli import output
from penstock.monitor import units
from penstock.store import check_format, find_run, find_snapshot, list_snapshots, read_manifest, read_pins, row_of

#: Columns of a wrapped line.
WIDE = 140


def many(count: int, what: str) -> str:
    """1 snapshot, 2 snapshots."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def describe(name: str, runs_dir: str) -> dict[str, Any]:
    """A snapshot and how its run stands; of a run that has none yet, only the latter. Raises `UserError`."""
    run = None if name.endswith(".json") or ("@" in name and not Path(name).is_dir()) else find_run(name, runs_dir)
    if run is not None and not list_snapshots(run.path):
        check_format(run)
        return output.run_row(run) | {"snapshot": None}
    snapshot = find_snapshot(name, runs_dir)
    run = run or find_run(snapshot.folder.label)
    manifest = read_manifest(snapshot)
    row = row_of(manifest)
    facts = {
        "id": manifest.id,
        "step": manifest.step,
        "parent": manifest.parent,
        "created": manifest.created,
        "file": manifest.file,
        "pinned": manifest.id in read_pins(run.path),
        "full": row.full,
        "loss": row.loss,
        "val_loss": row.val_loss,
        "tensors": row.tensors,
        "state_bytes": row.state_bytes,
        "added_bytes": row.added_bytes,
        "stored_bytes": row.stored_bytes,
        "packs": manifest.packs,
        "numbers": manifest.numbers,
        "about": manifest.about,
    }
    return output.run_row(run) | {"snapshot": facts}


def snapshot_text(described: dict[str, Any]) -> str:
    """What `describe` found."""
    standing = f"{described['run']}  {described['state']} at step {described['step']}"
    snapshot = described["snapshot"]
    if snapshot is None:
        return f"{standing}, without a snapshot yet"
    rows = [*_facts(snapshot), *((name, _told(value)) for name, value in snapshot["about"].items() if value and name != "config")]
    indent = max(len(name) for name, _ in rows) + 4
    lines = [standing, "", f"step {snapshot['step']}  {snapshot['id']}"]
    for name, value in rows:
        lines.append(textwrap.fill(value, WIDE, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent))
    return "\n".join(lines)


def _facts(snapshot: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "written", snapshot["created"] + (", pinned" if snapshot["pinned"] else "")
    yield "parent", snapshot["parent"] or "none"
    how = "in full" if snapshot["full"] else "as increments"
    yield "state", f"{units.size(snapshot['state_bytes'])} in {many(snapshot['tensors'], 'tensor')}, {how}"
    new = units.size(snapshot["added_bytes"])
    yield "stored", f"{units.size(snapshot['stored_bytes'])} in {many(len(snapshot['packs']), 'pack')}, {new} of it new"
    yield "numbers", _told({name: value for name, value in snapshot["numbers"].items() if isinstance(value, (int, float, str))})


def _told(value: Any) -> str:
    """A value on a line: names with theirs, texts without all but the first of their lines."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(item)}" for name, item in value.items() if item not in (None, "", [], {}))
    if isinstance(value, list):
        return "; ".join(map(_told, value))
    first, *more = str(value).splitlines() or [""]
    return first + (f" … {many(len(more), 'more line')}" if more else "")


def verified_text(result: dict[str, Any]) -> str:
    """What `verify` found."""
    chunks = f"{many(result['chunks'], 'chunk')} in {units.size(result['bytes'])}"
    counted = f"{many(result['snapshots'], 'snapshot')}, {chunks}, {many(result['events'], 'event')}"
    notes = [f"note: {note}" for note in result["notes"]]
    if not result["damaged"]:
        return "\n".join([f"{result['run']}: {counted}: all as written", *notes])
    lines = [f"{result['run']} is damaged ({counted}):"]
    for damage in result["damage"]:
        steps = f"; step {', '.join(map(str, damage['steps']))} does not load" if damage["steps"] else ""
        lines.append(f"  {damage['file']}: {damage['what']}{steps}")
    newest = result["newest_intact"]
    good = f"the newest that loads is step {newest['step']} ({newest['id'][:12]})" if newest else "none loads"
    return "\n".join([*lines, *notes, f"{len(result['intact'])} of {result['snapshots']} snapshots load; {good}"])


def collected_text(result: dict[str, Any]) -> str:
    """What `gc` did, or would do."""
    verb = "would drop" if result["dry_run"] else "dropped"
    steps = ", ".join(str(dropped["step"]) for dropped in result["dropped"])
    dropped = f"{verb} {many(len(result['dropped']), 'snapshot')}" + (f" (step {steps})" if steps else "")
    counted = f"{dropped} and {many(len(result['packs']), 'pack')}, {units.size(result['bytes'])}; {many(result['kept'], 'snapshot')} kept"
    return "\n".join([counted, *(f"note: {left}" for left in result["left"])])


def sent_text(result: dict[str, Any]) -> str:
    """What `push` or `pull` did."""
    what = f"{many(result['snapshots'], 'snapshot')} in {many(result['packs'], 'pack')}, {units.size(result['bytes'])} in all"
    lines = [f"sent {what}, to {result['to']}; {many(result['there_already'], 'snapshot')} there already"]
    return "\n".join(lines + [f"not sent: {what}" for what in result["damaged"]])
