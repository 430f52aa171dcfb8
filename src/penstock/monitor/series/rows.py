"""A rank's append-only log of rows: what it measured, a row a step, written by the training thread itself.

    RUN/metrics/rank-00003/g00000002-0000.rows     part 0 of what rank 3 wrote in generation 2

A *generation* is one stretch of steps that all ranks went through together: a start, a resume, a rewind to an older snapshot, a new set of ranks.
All ranks give it the same number, larger than any before (`next_generation`), and the step that it goes on after; what older generations wrote of
later steps is thereby replaced, without being rewritten. Parts begin with who writes and the names of the columns, so each can be read alone.

Cost: one unbuffered write, about 5 µs for 300 values; no thread, no queue, one row of memory. A killed process loses no row; a lost machine those
that the system had not written yet. A row that the disk does not take is dropped and counted; beyond `log_bytes` a rank's oldest part makes room.
Nothing here raises for a disk's sake. When not to use it: for text, or for what does not come in rows (`monitor/store.py`).
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from penstock.monitor.series.frames import HEADER, MOST_BYTES, ROW, about_record, fill, names_digest

#: Bytes of all parts of a rank; of a part, and what a part of many ranks has at least (readers read the newest parts of all ranks).
LOG_BYTES, PART_BYTES, LEAST_PART_BYTES = 256 << 20, 8 << 20, 256 << 10
_RANK, _PART = re.compile(r"rank-(\d+)"), re.compile(r"g(\d+)-(\d+)\.rows")


class RowLog:
    """Writes one rank's rows of one generation, which goes on after step `after`; `folder` is the run's `metrics`."""

    def __init__(
        self, folder: Path, rank: int, ranks: int, generation: int, after: int, part_bytes: int = 0, log_bytes: int = LOG_BYTES
    ) -> None:
        self.folder = folder / f"rank-{rank:05d}"
        self._about = {"format": 1, "rank": rank, "ranks": ranks, "generation": generation, "after": after}
        self._generation, self._log_bytes = generation, log_bytes
        self._part_bytes = part_bytes or max(LEAST_PART_BYTES, PART_BYTES // ranks)
        self._file, self._end = -1, 0
        self._names: list[str] = []
        self._told = False
        self._new_frame()
        #: Rows offered, and how many of them the disk did not take.
        self.rows, self.dropped = 0, 0

    def names(self, names: list[str]) -> None:
        """All names of the columns of the rows from here on; raises ValueError if they are too many for a record."""
        if 8 * len(names) > MOST_BYTES or sum(map(len, names)) > MOST_BYTES // 2:
            raise ValueError(f"{len(names)} metrics are too many for a row")
        if names != self._names:
            self._names = list(names)
            self._new_frame()
            self._told = False

    def append(self, step: int, time: float, row: np.ndarray) -> bool:
        """Add a row, float64 [names], of a step that ended at `time` (unix seconds); False if it was dropped."""
        self._values[:] = row
        fill(self._frame, self.rows, step, time, ROW, self._names_digest)
        self.rows += 1
        try:
            self._make_room()
            self._write(self._frame)
        except OSError:
            self.dropped += 1
            return False
        return True

    def close(self) -> None:
        """Close the file; a later row begins a new part."""
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
        self._file = -1

    def _new_frame(self) -> None:
        self._frame = bytearray(HEADER.size + 8 * len(self._names))
        self._values = np.frombuffer(self._frame, "<f8", offset=HEADER.size)
        self._names_digest = names_digest(self._names)

    def _make_room(self) -> None:
        """Have a part open that knows the names."""
        if self._file >= 0 and self._end + len(self._frame) > self._part_bytes:
            self.close()
        if self._file < 0:
            self._open()
        if not self._told:
            about = json.dumps(self._about | {"names": self._names}, separators=(",", ":"))
            self._write(about_record(about.encode(), self._names_digest))
            self._told = True

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = parts_of(self.folder)
        part = 1 + max((n for generation, n, _ in parts if generation == self._generation), default=-1)
        path = self.folder / f"g{self._generation:08d}-{part:04d}.rows"
        self._file, self._end, self._told = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644), 0, False
        self._forget([path for _, _, path in parts])

    def _forget(self, paths: list[Path]) -> None:
        """Remove the oldest parts beyond what a rank may keep."""
        sizes = {}
        for path in paths:
            with suppress(OSError):
                sizes[path] = path.stat().st_size
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total + self._part_bytes <= self._log_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _write(self, record: bytes | bytearray) -> None:
        """Write a record whole or not at all, as far as the disk lets us; raises OSError."""
        try:
            taken = os.write(self._file, record)
        except OSError:
            taken = 0
        if taken < len(record):
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise OSError("the disk did not take the record")
        self._end += taken


def parts_of(folder: Path) -> list[tuple[int, int, Path]]:
    """Generation, number and path of a rank's parts, oldest first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted((int(match[1]), int(match[2]), folder / name) for name in names if (match := _PART.fullmatch(name)))


def rank_folders(folder: Path) -> dict[int, Path]:
    """The folders of ranks below the run's `metrics`, by rank."""
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    return {int(match[1]): folder / match[0] for name in sorted(names) if (match := _RANK.fullmatch(name))}


def next_generation(folder: Path) -> int:
    """A generation's number that no rank below `folder` has used, as this host sees it; ranks then take the largest that any of them found."""
    newest = (parts_of(path)[-1:] for path in rank_folders(folder).values())
    return 1 + max((part[0][0] for part in newest if part), default=0)
