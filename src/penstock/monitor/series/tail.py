"""Reading a rank's row log, from its beginning or as it grows: whole rows in order, damage skipped and named.

A record that is torn at the end of the newest part may be one that is being written; it is waited for. Anywhere else bytes that are no whole record
are skipped up to the next that is, and told as `Damage`. Cost: about 2 µs a row of 300 values, and memory for a few MiB at a time. It opens files for
reading only, so a copy without write permission will do. When not to use it: to ask for a metric's course (`query.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from penstock.monitor.series.frames import ABOUT, HEADER, Frame, cut_off, frame_at, is_whole, names_digest, next_frame, rows_at, whole_rows
from penstock.monitor.series.rows import parts_of

#: Bytes read at once, and at least that, if a record is not longer.
CHUNK_BYTES, LEAST_BYTES = 8 << 20, 1 << 16
#: Damages told one by one; more are counted.
MOST_DAMAGES = 100


@dataclass(frozen=True)
class Damage:
    """Bytes of a file that could not be read."""

    file: Path
    offset: int
    bytes: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}: {self.bytes} bytes at {self.offset} {self.why}"


@dataclass(frozen=True)
class About:
    """Who wrote rows: one of `ranks` ranks, in a generation that goes on after a step; and the names of the columns."""

    rank: int
    ranks: int
    generation: int
    after: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of a rank that follow each other: steps and numbers int64 [rows], times float64 [rows] (unix seconds), values float64 [rows, names]."""

    about: About
    numbers: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    values_rn: np.ndarray

    def only(self, wanted: Callable[[str], bool]) -> Rows:
        """The same rows with those metrics alone."""
        columns = [i for i, name in enumerate(self.about.names) if wanted(name)]
        about = replace(self.about, names=tuple(self.about.names[i] for i in columns))
        return replace(self, about=about, values_rn=self.values_rn[:, columns])


class RowTail:
    """Reads one rank's log on, about `chunk_bytes` at once, from the first part behind one (generation and number); `folder` is the rank's."""

    def __init__(self, folder: Path, chunk_bytes: int = CHUNK_BYTES, behind: tuple[int, int] = (-1, -1)) -> None:
        self.folder, self._chunk_bytes = folder, chunk_bytes
        self.damage: list[Damage] = []
        self.damages = 0
        #: Rows between those read that are not there: dropped by a disk, or damaged.
        self.lost = 0
        self._part = behind
        self._path, self._offset = folder, 0
        self._about: About | None = None
        self._known = 0
        self._expected: int | None = None
        #: Generation and step of the last row of the parts before this one, and of the last row read.
        self.before, self._last = (-1, -1), (-1, -1)

    @property
    def part(self) -> tuple[int, int]:
        """Generation and number of the part that is being read; all before it have been."""
        return self._part

    def read(self) -> list[Rows]:
        """Rows that follow those read before, a few MiB at most; empty if there are none yet."""
        while True:
            later = [(generation, n, path) for generation, n, path in parts_of(self.folder) if (generation, n) > self._part]
            rows = self._read_part(last=not later)
            if rows or not later:
                return rows
            self._begin(*later[0])

    def _begin(self, generation: int, n: int, path: Path) -> None:
        self.before = self._last
        if generation != self._part[0]:
            self._about = None
        if n == 0:
            self._expected = 0
        elif (generation, n - 1) != self._part:
            self._expected = None  # parts between were compacted, or made room
        self._part, self._path, self._offset = (generation, n), path, 0

    def _read_part(self, last: bool) -> list[Rows]:
        """Rows of the present part; `last` if it may be being written."""
        while True:
            data = self._chunk()
            rows, used = self._parse(data, last and len(data) < self._chunk_bytes)
            self._offset += used
            if rows or not used:
                return rows

    def _chunk(self) -> memoryview:
        if self._path == self.folder:  # no part is begun
            return memoryview(b"")
        try:
            with open(self._path, "rb", buffering=0) as file:
                data = memoryview(os.pread(file.fileno(), self._chunk_bytes, self._offset))
                if len(data) == self._chunk_bytes and (frame := frame_at(data, 0)) and frame.end > len(data):
                    data = memoryview(os.pread(file.fileno(), frame.end, self._offset))
                return data
        except FileNotFoundError:  # what was compacted, or made room
            return memoryview(b"")
        except OSError as error:
            self._told(0, 0, f"cannot be read: {error.strerror}")
            return memoryview(b"")

    def _parse(self, data: memoryview, growing: bool) -> tuple[list[Rows], int]:
        """Rows in a chunk, and how many of its bytes need not be read again."""
        rows: list[Rows] = []
        at = 0
        while at < len(data):
            frame = frame_at(data, at)
            if frame is None or not is_whole(data, frame):
                found = next_frame(data, at + 1)
                if found is None:
                    return rows, self._rest(data, at, growing)
                self._told(at, found.start - at, "are no whole record and were skipped")
                frame = found
            at = self._about_at(data, frame) if frame.kind == ABOUT else self._rows_at(data, frame, rows)
        return rows, at

    def _rest(self, data: memoryview, at: int, growing: bool) -> int:
        """How far to go on in a chunk that holds no whole record from `at` on: not at all where the rest may still come, else behind the damage."""
        end, more = len(data), len(data) >= self._chunk_bytes
        if growing:
            return at
        if more and at > 0 and cut_off(data, at) == at:
            return at
        behind = cut_off(data, at + 1) if more else end
        self._told(at, behind - at, "are no whole record and were skipped" if more else "at its end are no whole record")
        return behind

    def _about_at(self, data: memoryview, frame: Frame) -> int:
        if found := parse_about(bytes(data[frame.payload : frame.end])):
            self._about, self._known = found, names_digest(list(found.names))
        return frame.end

    def _rows_at(self, data: memoryview, first: Frame, rows: list[Rows]) -> int:
        count = whole_rows(data, first)
        end = first.start + count * (first.end - first.start)
        if self._about is None or first.names != self._known or 8 * len(self._about.names) != first.length:
            self._told(first.start, end - first.start, f"are {count} rows whose names are lost")
            return end
        heads, values = rows_at(data, first, count)
        numbers = heads["number"].astype(np.int64)
        first_number = int(numbers[0]) if self._expected is None else self._expected
        self._expected = int(numbers[-1]) + 1
        self.lost += max(0, self._expected - first_number - count)
        self._last = self._about.generation, int(heads["step"][-1])
        rows.append(Rows(self._about, numbers, heads["step"].astype(np.int64), heads["time"].astype(np.float64), values))
        return end

    def _told(self, at: int, length: int, why: str) -> None:
        self.damages += 1
        if len(self.damage) < MOST_DAMAGES:
            self.damage.append(Damage(self._path, self._offset + at, length, why))


def parse_about(payload: bytes) -> About | None:
    """Who writes, as the payload of such a record has it; None if it is none."""
    with suppress(ValueError, KeyError, TypeError):
        found = json.loads(payload)
        names = tuple(str(name) for name in found["names"])
        return About(int(found["rank"]), int(found["ranks"]), int(found["generation"]), int(found["after"]), names)
    return None


def first_about(path: Path) -> About | None:
    """Who wrote a part, from its first record; None if that is damaged."""
    with suppress(OSError), open(path, "rb") as file:
        data = memoryview(file.read(HEADER.size))
        if frame := frame_at(data, 0):
            data = memoryview(bytes(data) + file.read(frame.length))
            if frame.kind == ABOUT and is_whole(data, frame):
                return parse_about(bytes(data[frame.payload : frame.end]))
    return None
