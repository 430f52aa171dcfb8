"""`penstock runs log` for people: a run's snapshots as a tree, newest first, with what happened between them, as `git log --graph` draws commits.

    ●  a snapshot that is here        ○  one that was dropped        ✗  one that is damaged or lost

A line down leads from a snapshot to its parent. A run that went on from an older snapshot has a second line, which joins where both began.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from penstock.monitor import units
from penstock.store import Entry, Timeline, Told

_MARKS = {"here": "●", "dropped": "○"}
_LOST = "✗"
#: Dropped snapshots in a row that are told as one.
MANY = 3


def timeline_text(row: dict[str, Any], told: Timeline) -> str:
    """The whole text; `row` is the run's of `penstock runs`."""
    snapshots = [entry.snapshot for entry in told.entries if entry.snapshot]
    here = sum(snapshot.state == "here" for snapshot in snapshots)
    chain = "the chain is broken" if told.damage else f"each sealed by the next, the last {told.head[:12]}" if told.head else "none"
    lines = [f"{row['run']}  {row['state']} at step {row['step']}", f"{here} of {len(snapshots)} snapshots here; {told.events} events: {chain}", ""]
    lines += _drawn([entry for entry in told.entries if not (entry.kind == "gc" and entry.data.get("automatic"))])
    lines += [f"\n{_LOST} {what}" for what in told.damage] + [f"\nnote: {note}" for note in told.notes]
    return "\n".join(lines)


def _drawn(entries: list[Entry]) -> list[str]:
    rows = list(_graphed(list(_merged(entries[::-1]))))
    steps = [str(group[0].step) for _, group in rows if group]
    graphs, words, numbers = (max(map(len, texts), default=0) for texts in ([graph for graph, _ in rows], [_word(g) for _, g in rows], steps))
    lines = []
    for graph, group in rows:
        step = "" if not group or group[0].step is None else str(group[0].step)
        told = f"{_word(group):{words}} {step:>{numbers}}  {_when(group[0])}  {_facts(group)}" if group else ""
        lines.append(f"{graph:{graphs}}  {told}".rstrip())
    return lines


def _graphed(groups: list[list[Entry]]) -> Iterator[tuple[str, list[Entry]]]:
    """Each group with the drawing before it; lines that only draw have no group."""
    lanes: list[str] = []  # ids of the snapshots that the lines down lead to
    for group in groups:
        first, last = group[0].snapshot, group[-1].snapshot
        if first is None or last is None:
            yield " ".join("│" * len(lanes)), group
            continue
        column, joining = _take(lanes, first.id)
        if joining:
            yield joining, []
        marks = ["│"] * len(lanes)
        marks[column] = _MARKS.get(first.state, _LOST)
        yield " ".join(marks), group
        lanes[column : column + 1] = [last.parent] if last.parent else []


def _take(lanes: list[str], id: str) -> tuple[int, str]:
    """The column of a snapshot, and how the lines that lead to it join there, if several do."""
    if id not in lanes:
        lanes.append(id)
        return len(lanes) - 1, ""
    column = lanes.index(id)
    others = [i for i, lane in enumerate(lanes) if lane == id and i != column]
    if not others:
        return column, ""
    cells = ["│ "] * column + ["├─"]
    cells += ["╯ " if i == others[-1] else "┴─" if i in others else "┼─" if i < others[-1] else "│ " for i in range(column + 1, len(lanes))]
    lanes[:] = [lane for i, lane in enumerate(lanes) if i not in others]
    return column, "".join(cells).rstrip()


def _merged(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Entries, with many dropped snapshots in a row, each the parent of the one before and of no other, as one group."""
    parents = Counter(entry.snapshot.parent for entry in entries if entry.snapshot)
    group: list[Entry] = []
    for entry in [*entries, None]:
        if entry is not None and group and _dropped(entry) and _follows(group[-1], entry, parents):
            group.append(entry)
            continue
        yield from [group] if len(group) >= MANY else [[one] for one in group]
        group = [entry] if entry is not None else []
        if entry is not None and not _dropped(entry):
            yield group
            group = []


def _dropped(entry: Entry) -> bool:
    return entry.snapshot is not None and entry.snapshot.state == "dropped" and not entry.snapshot.pinned


def _follows(later: Entry, earlier: Entry, parents: Counter[str | None]) -> bool:
    if later.snapshot is None or earlier.snapshot is None:
        return False
    return later.snapshot.parent == earlier.snapshot.id and parents[earlier.snapshot.id] == 1


def _word(group: list[Entry]) -> str:
    return "" if not group else "step" if group[0].snapshot else group[0].kind


def _when(entry: Entry) -> str:
    return entry.time[:19].replace("T", " ")


def _facts(group: list[Entry]) -> str:
    told = group[0].snapshot
    if told is None:
        return group[0].text
    if len(group) > 1:
        return f"… down to step {group[-1].step}: {len(group)} snapshots dropped"
    losses = f"{_number('loss', told.loss)}  {_number('val', told.val_loss)}"
    return f"{losses}  {_bytes(told):>25}  {told.id[:12]}  {', '.join(_remarks(told))}"


def _number(name: str, value: float | None) -> str:
    return f"{name} {value:.4f}" if value is not None else " " * (len(name) + 7)


def _bytes(told: Told) -> str:
    if not told.state_bytes:
        return ""
    whole = units.size(told.state_bytes)
    return f"{units.size(told.added_bytes)} in full" if told.full else f"+{units.size(told.added_bytes)} of {whole}"


def _remarks(told: Told) -> Iterator[str]:
    if told.newest:
        yield "newest"
    if told.pinned:
        yield "pinned"
    if told.state != "here":
        yield told.state
