"""What differs between two snapshots, as lines for people: one row a fact, before and after beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.store.story.diff import PARTS, Change, CodeChange, SnapshotDiff, TensorChanges
from penstock.store.story.difference import Difference

#: Longest text of a value in a table, most names in a list, and most tensors in a table; JSON has all.
WIDEST, MOST_NAMES, MOST_TENSORS = 56, 8, 20


def diff_lines(diff: SnapshotDiff) -> list[str]:
    """The parts in which the snapshots differ, and one line that names those in which they do not."""
    rows: list[tuple[str, str, str]] = []
    same = []
    for part in PARTS:
        rows += _part(part, [(change.name, shown(change.before), shown(change.after)) for change in diff.parts[part]])
        same += [] if diff.parts[part] else [part]
    rows += _part("code", [(change.checkout, *_code(change)) for change in diff.code if not change.same])
    same += ["code"] if diff.code and all(change.same for change in diff.code) else []
    lines = _aligned(rows)
    lines += [f"same     {', '.join(same)}"] if same else []
    return [*lines, f"state    {_tensors(diff.tensors)}", *_other_tensors(diff.tensors)]


def weight_lines(differences: Sequence[Difference]) -> list[str]:
    """Tensors that differ, those that differ most first."""
    rows = [("tensor", "relative", "largest", "numbers that differ", "first at")]
    for told in differences[:MOST_TENSORS]:
        count = f"{told.count:,} of {told.numel:,}"
        rows.append((told.name, f"{told.relative:.2e}", f"{told.largest:.2e}", count, ",".join(map(str, told.place)) or "–"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    more = [f"  … and {len(differences) - MOST_TENSORS} that differ less"] if len(differences) > MOST_TENSORS else []
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows] + more


def shown(value: Any) -> str:
    """A value for people: at most `WIDEST` characters, '–' where there is none."""
    if value is None:
        return "–"
    if isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= WIDEST else f"…{text[1 - WIDEST :]}"


def _part(name: str, rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return [(name, "", ""), *((f"  {row[0]}", *row[1:]) for row in rows)] if rows else []


def _aligned(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return [f"{name.ljust(widths[0])}  {before.ljust(widths[1])}  {after}".rstrip() for name, before, after in rows]


def _code(change: CodeChange) -> tuple[str, str]:
    """What ran before and after: commit, branch, and what was changed since."""
    return _checkout(change.before), _checkout(change.after)


def _checkout(record: dict[str, Any] | None) -> str:
    if record is None:
        return "–"
    changed, cut = record.get("changed") or [], " (cut)" if record.get("diff_cut") else ""
    dirty = f", {len(changed)} {'file' if len(changed) == 1 else 'files'} changed: {str(record.get('diff'))[:12]}{cut}" if changed else ", clean"
    return f"{str(record.get('commit') or 'no commit')[:12]} on {record.get('branch') or 'no branch'}{dirty}"


def _tensors(tensors: TensorChanges) -> str:
    """How many tensors are the same."""
    counts = {
        "the same bit for bit": len(tensors.equal),
        "differ": len(tensors.differ),
        "of another shape": len(tensors.reshaped),
        "only before": len(tensors.only_before),
        "only after": len(tensors.only_after),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no tensors"


def _other_tensors(tensors: TensorChanges) -> list[str]:
    """Those that are not on both sides in one shape, by name."""
    reshaped = [f"{change.name} {_shape(change)}" for change in tensors.reshaped]
    groups = (("of another shape", reshaped), ("only before", tensors.only_before), ("only after", tensors.only_after))
    return [f"  {what}: {named(names)}" for what, names in groups if names]


def _shape(change: Change) -> str:
    return " → ".join(f"{tuple(shape)} {dtype}" for shape, dtype in (change.before, change.after))


def named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
