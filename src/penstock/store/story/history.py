"""A run's history: what happened to it, one JSON line an event, each line sealing all before it.

    {"seq": 7, "time": "2026-01-31T…", "kind": "change", "step": 400, "text": "optim.lr 0.001 → 0.0005", "data": {…}, "previous": "…", "hash": "…"}

`hash` is BLAKE3 of the line's canonical JSON without it, `previous` the hash of the line before. Whoever changes, drops or moves a line breaks the
chain there, and would have to write all later ones again; `history.head` holds the last line's number and hash, so that lines missing at the end are
noticed too. Manifests say which head they were written at, and their ids are chained by their parents, so a history written again as a whole does
not fit them.

A line is appended in one write and flushed to the disk before the head is. A crash can tear only the last line, which never was acknowledged: it is
reported, and cut off by the next append. Cost: three flushes an event. When not to use it: for what happens every step (`metrics/`).
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import blake3

from penstock.config import disk_errors
from penstock.store.canonical import canonical, plain
from penstock.store.places.folder import Folder, LocalFolder
from penstock.store.places.locks import store_lock

FILE, HEAD, LOCK = "history.jsonl", "history.head", ".history.lock"
KINDS = ("start", "snapshot", "resume", "change", "fork", "failure", "recovery", "alert", "note", "gc")
#: Number and hash before the first line.
NO_HEAD = (0, "")
_TAIL = 1 << 16  # bytes read at the end to find the last line


@dataclass(frozen=True)
class Event:
    """Something that happened to a run at a step (None: at no step of its own)."""

    seq: int
    time: str
    kind: str
    step: int | None
    text: str
    data: dict[str, Any]
    previous: str
    hash: str = ""

    def sealed(self) -> str:
        """The hash that its content should have; an empty one for content that is no JSON."""
        content = {name: value for name, value in vars(self).items() if name != "hash"}
        try:
            return blake3.blake3(canonical(content)).hexdigest()
        except (ValueError, RecursionError):
            return ""


@dataclass(frozen=True)
class History:
    """The events that can be read, in order; what is wrong with the chain; and a last line that a crash tore, if so."""

    events: list[Event] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    torn: str | None = None

    @property
    def dropped(self) -> set[str]:
        """Ids of the snapshots that collections dropped, or that a fork left where it came from."""
        lists = [event.data.get("dropped") for event in self.events if event.kind in ("gc", "fork")]
        return {id for ids in lists if isinstance(ids, list) for id in ids if isinstance(id, str)}


def append_event(run: Path, kind: str, text: str, step: int | None = None, **data: Any) -> Event:
    """Add an event at the end of a run's history, on the disk when this returns; raises `UserError` when that is full or refuses."""
    assert kind in KINDS, f"{kind} is no kind of event"
    folder = LocalFolder(run)
    with store_lock(folder, LOCK):
        seq, previous = _head(folder) or NO_HEAD
        with disk_errors(run, f"writing {FILE}"):
            descriptor = os.open(run / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                last_seq, last_hash = _end_of_line(descriptor)
                if last_seq >= seq:  # else lines are missing at the end, and the gap must stay visible
                    seq, previous = last_seq, last_hash
                event = Event(seq + 1, time.strftime("%Y-%m-%dT%H:%M:%S%z"), kind, step, text, plain(data), previous)
                event = replace(event, hash=event.sealed())
                _write_line(descriptor, json.dumps(vars(event), ensure_ascii=False).encode() + b"\n")
            finally:
                os.close(descriptor)
        folder.write(HEAD, json.dumps(head_of(event.seq, event.hash)).encode())
    return event


def history_head(run: Path) -> dict[str, Any]:
    """`seq` and `hash` of the last event, for a manifest's `about.history`; seq 0 where there is none."""
    return head_of(*(_head(LocalFolder(run)) or NO_HEAD))


def head_of(seq: int, hash: str) -> dict[str, Any]:
    """A head as it is stored."""
    return {"seq": seq, "hash": hash}


def last_event(folder: Folder, kind: str | None = None) -> Event | None:
    """The last event of a run (of a kind), without reading all before it; what is not an event is passed over."""
    try:
        size, window = folder.size(FILE), _TAIL
        while True:
            start = max(0, size - window)
            lines = folder.read(FILE, start).split(b"\n")[1 if start else 0 : -1]
            found = next((event for line in reversed(lines) if (event := _parsed(line)) and kind in (None, event.kind)), None)
            if found or not start:
                return found
            window *= 8
    except OSError:
        return None


def read_history(folder: Folder | Path) -> History:
    """A run's events, every line held against its hash and the one before it. Damage is told, not raised."""
    folder = folder if isinstance(folder, Folder) else LocalFolder(folder)
    try:
        data = folder.read(FILE) if folder.has(FILE) else b""
    except OSError as error:
        return History(damage=[f"{FILE} cannot be read: {error.strerror}"])
    *lines, rest = data.split(b"\n")
    events, damage = _chained(lines)
    damage += _lost_at_end(folder, events, len(lines))
    return History(events, damage, f"{FILE} ends in {len(rest)} bytes of a line that a crash tore" if rest else None)


def _chained(lines: list[bytes]) -> tuple[list[Event], list[str]]:
    events: list[Event] = []
    damage = []
    before: tuple[int, str] | None = (0, "")
    for number, line in enumerate(lines, 1):
        event = _parsed(line)
        if event is None:
            damage.append(f"{FILE} line {number} is not an event: it was overwritten")
            before = None  # what came after it cannot be held against it
            continue
        if event.hash != event.sealed():
            damage.append(f"{FILE} line {number} ({event.kind}, step {event.step}) was changed")
        elif before is not None and (event.seq, event.previous) != (before[0] + 1, before[1]):
            damage.append(f"{FILE} line {number} does not follow on the one before: lines were changed, dropped or moved there")
        before = event.seq, event.hash
        events.append(event)
    return events, damage


def _lost_at_end(folder: Folder, events: list[Event], lines: int) -> list[str]:
    head = _head(folder)
    if head is None:
        return [f"{HEAD} is missing or damaged, so lines may be missing at the end"] if lines > 1 else []
    seq, last = head
    known = {event.seq: event.hash for event in events}
    newest = max(known, default=0)
    if seq > newest:
        return [f"{FILE} has lost its last {seq - newest} lines"]
    return [] if known.get(seq) in (last, None) else [f"{HEAD} does not fit line {seq}: the history was written again"]


def _head(folder: Folder) -> tuple[int, str] | None:
    try:
        head = json.loads(folder.read(HEAD, size=1000))
        return int(head["seq"]), str(head["hash"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _end_of_line(descriptor: int) -> tuple[int, str]:
    """Cut off a torn last line; return number and hash of the last whole one."""
    line, end = _last_line(descriptor)
    if end < os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, end)
    event = _parsed(line)
    return (event.seq, event.hash) if event else NO_HEAD


def _last_line(descriptor: int) -> tuple[bytes, int]:
    """The last whole line of a file, and where it ends."""
    size, window = os.fstat(descriptor).st_size, _TAIL
    while True:
        start = max(0, size - window)
        tail = os.pread(descriptor, size - start, start)
        whole = tail[: tail.rfind(b"\n") + 1]
        line = whole[:-1].rpartition(b"\n")
        if line[1] or start == 0:
            return line[2], start + len(whole)
        window *= 8


def _write_line(descriptor: int, line: bytes) -> None:
    """Append a line whole, or not at all, as far as the disk lets us."""
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            os.write(descriptor, line[written:])  # raises what stopped the first
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _parsed(line: bytes) -> Event | None:
    try:
        event = Event(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (event.time, event.kind, event.text, event.previous, event.hash)
    right = type(event.seq) is int and (event.step is None or type(event.step) is int) and isinstance(event.data, dict)
    return event if right and all(isinstance(text, str) for text in texts) else None
