"""What `penstock runs show`, `verify`, `gc`, `push` and `pull` say: a snapshot as a dictionary, and results as a few lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.cli import output
from penstock.monitor import units
from penstock.store import find_run, find_snapshot, list_snapshots, read_manifest, read_pins, row_of

#: Longest value that is shown; the rest is in `--json`.
WIDE = 110


def describe(name: str, runs_dir: str) -> dict[str, Any]:
    """A snapshot and how its run stands; of a run that has none yet, only the latter. Raises `UserError`."""
    run = None if name.endswith(".json") or ("@" in name and not Path(name).is_dir()) else find_run(name, runs_dir)
    if run is not None and not list_snapshots(run.path):
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
    lines = [f"{described['run']}  {described['state']} at step {described['step']}"]
    snapshot = described["snapshot"]
    if snapshot is None:
        return lines[0] + ", without a snapshot yet"
    rows = list(_facts(snapshot)) + list(_flat(snapshot["about"]))
    width = max(len(name) for name, _ in rows)
    lines += [f"\nsnapshot of step {snapshot['step']}, {snapshot['id']}"]
    lines += [f"  {name:{width}}  {value}" for name, value in rows]
    return "\n".join(lines)


def _facts(snapshot: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "written", snapshot["created"] + (", pinned" if snapshot["pinned"] else "")
    yield "parent", snapshot["parent"] or "none"
    how = "in full" if snapshot["full"] else "as increments"
    yield "state", f"{units.size(snapshot['state_bytes'])} in {snapshot['tensors']} tensors, {how}"
    yield "stored", f"{units.size(snapshot['stored_bytes'])} in {len(snapshot['packs'])} packs, {units.size(snapshot['added_bytes'])} of it new"
    yield from _flat({name: value for name, value in snapshot["numbers"].items() if isinstance(value, (int, float, str))})


def _flat(values: dict[str, Any], lead: str = "") -> Iterator[tuple[str, str]]:
    """Values by dotted name, one line each; the settings are `penstock runs diff`'s, and left out."""
    for name, value in values.items():
        if isinstance(value, dict) and name != "config":
            yield from _flat(value, f"{lead}{name}.")
        elif not isinstance(value, dict) and value is not None:
            first, *more = str(value).splitlines() or [""]
            cut = first if len(first) <= WIDE else first[: WIDE - 1] + "…"
            yield lead + name, cut + (f" … {len(more)} more lines" if more else "")


def verified_text(result: dict[str, Any]) -> str:
    """What `verify` found."""
    counted = f"{result['snapshots']} snapshots, {result['chunks']} chunks in {units.size(result['bytes'])}, {result['events']} events"
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
    dropped = f"{verb} {len(result['dropped'])} snapshots" + (f" (step {steps})" if steps else "")
    counted = f"{dropped} and {len(result['packs'])} packs, {units.size(result['bytes'])}; {result['kept']} snapshots stay"
    return "\n".join([counted, *(f"note: {left}" for left in result["left"])])


def sent_text(result: dict[str, Any]) -> str:
    """What `push` or `pull` did."""
    sent = f"{result['snapshots']} snapshots, {result['packs']} packs, {units.size(result['bytes'])} sent to {result['to']} and read back"
    lines = [f"{sent}; {result['there_already']} snapshots were there"]
    return "\n".join(lines + [f"not sent: {what}" for what in result["damaged"]])
