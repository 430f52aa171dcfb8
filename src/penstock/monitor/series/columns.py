"""The store of a run's metrics: files to which chunks of columns are appended, by the one process that owns them, and read by anyone.

    RUN/metrics/store/columns-00000.pcc    chunk after chunk (chunk.py); at 256 MiB the next file begins

A chunk is written in one go and flushed to the disk before the ranks' rows that it holds may go, so a crash at any byte loses nothing: a torn chunk
at the end is not there for readers and is cut off by the next owner. Chunks are never changed; what a resumed run replaced is masked when it is read.
Cost: opening takes two reads a chunk, some 30 µs; a metric's course one more and 50 µs to unpack it. Files are opened for reading only. When not to
use it: for the last steps, which are in the ranks' own logs (`query.py` reads both)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.monitor.series.chunk import FIELDS, HEAD, KEYS, MAGIC, About, Head, block_ends, is_sound, parse_about, parse_head, unpack_block
from penstock.monitor.series.merge import Generation, Key
from penstock.monitor.series.tail import Damage

FILE_BYTES = 256 << 20
#: Rows whose keys an open store keeps, for the next who asks.
KEPT_ROWS = 1_250_000
#: Generations, steps and times of rows.
Keys = tuple[np.ndarray, np.ndarray, np.ndarray]
NOTHING: Key = (-1, -1)
_FILE = re.compile(r"columns-(\d+)\.pcc")
#: Bytes read at once where a damaged chunk's successor is looked for.
_SEEK_BYTES = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A chunk in a file: where its blocks begin and end, and the places of metrics in it."""

    path: Path
    start: int
    head: Head
    about: About
    places: dict[str, int]
    ends: np.ndarray

    def block(self, number: int) -> tuple[int, int]:
        """Offset in the file and length of a block; an empty one is the one before."""
        begin = int(self.ends[number - 1]) if number else 0
        return self.start + HEAD.size + self.head.front + begin, int(self.ends[number]) - begin


class ColumnReader:
    """All whole chunks below a folder, oldest first, and their columns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chunks: list[Stored] = []
        self.damage: list[Damage] = []
        #: Bytes behind the last whole chunk of the newest file.
        self.torn = 0
        self._abouts: dict[bytes, tuple[About, dict[str, int]]] = {}
        self._files: dict[Path, int] = {}
        self._keys: dict[tuple[Path, int], Keys] = {}
        self._kept_rows = 0
        self._ends: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in chunks that were appended since."""
        paths = files_of(self.folder)
        for path in paths:
            for start, data_end in self._scan(path, newest=path == paths[-1]):
                self._ends[path] = start
                self.torn = data_end - start

    @property
    def through(self) -> Key:
        """Generation and step of the last row that is stored."""
        return max((chunk.head.last for chunk in self.chunks), default=NOTHING)

    @property
    def generations(self) -> dict[int, Generation]:
        """The generations that chunks tell of, by number."""
        abouts = {id(chunk.about): chunk.about for chunk in self.chunks}
        return {generation.number: generation for about in abouts.values() for generation in about.generations}

    def five(self, chunk: Stored, name: str) -> list[np.ndarray] | None:
        """A metric's five columns in a chunk; None if the chunk lacks the metric, or one of them is damaged, which is then told."""
        if name not in chunk.places:
            return None
        first = KEYS + chunk.places[name] * len(FIELDS)
        found: list[np.ndarray] = []
        for i, field in enumerate(FIELDS):
            if found and not chunk.block(first + i)[1]:  # as the one before
                found.append(found[-1])
                continue
            column = self._block(chunk, first + i, "<i4" if field.endswith("_rank") else "<f8", f"of {name}'s {field}")
            if column is None:
                return None
            found.append(column)
        return found

    def keys(self, chunk: Stored) -> Keys | None:
        """Generations, steps (int64) and times of a chunk's rows; None if they are damaged, which is then told. Those of many rows are kept."""
        place = chunk.path, chunk.start
        if place not in self._keys and (keys := self._read_keys(chunk)):
            if self._kept_rows + chunk.head.steps > KEPT_ROWS:
                return keys
            self._kept_rows += chunk.head.steps
            self._keys[place] = keys
        return self._keys.get(place)

    def _read_keys(self, chunk: Stored) -> Keys | None:
        found = [self._block(chunk, i, dtype, "of a chunk's steps") for i, dtype in enumerate(("<i8", "<i8", "<f8"))]
        generations, steps, times = found
        return None if generations is None or steps is None or times is None else (generations, steps, times)

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _block(self, chunk: Stored, number: int, dtype: str, what: str) -> np.ndarray | None:
        start, length = chunk.block(number)
        try:
            return unpack_block(os.pread(self._file(chunk.path), length, start), chunk.head.steps, dtype)
        except (OSError, ValueError):
            self._told(chunk.path, start, length, f"{what} are damaged")
            return None

    def _scan(self, path: Path, newest: bool) -> Iterator[tuple[int, int]]:
        """Find a file's chunks from where it was read to; yields how far it is read, and where the file ends."""
        start = self._ends.get(path, 0)
        try:
            end = os.fstat(self._file(path)).st_size
            while start < end:
                chunk = self._chunk_at(path, start, end)
                if chunk is None:
                    found = self._next(path, start + 1, end)
                    if found is None:
                        if not newest:
                            self._told(path, start, end - start, "are no whole chunk")
                        break
                    self._told(path, start, found - start, "are no whole chunk and were skipped")
                    start = found
                    continue
                self.chunks.append(chunk)
                start += chunk.head.bytes
            yield start, end
        except OSError as error:
            self._told(path, start, 0, f"cannot be read: {error.strerror}")

    def _chunk_at(self, path: Path, start: int, end: int) -> Stored | None:
        file = self._file(path)
        head = parse_head(os.pread(file, HEAD.size, start))
        if head is None or start + head.bytes > end:
            return None
        front = os.pread(file, head.front, start + HEAD.size)
        if not is_sound(head, front):
            return None
        packed = front[: head.about_bytes]
        if packed not in self._abouts:
            about = parse_about(packed)
            self._abouts[packed] = about, {name: i for i, name in enumerate(about.names)}
        return Stored(path, start, head, *self._abouts[packed], block_ends(front[head.about_bytes :]))

    def _next(self, path: Path, start: int, end: int) -> int | None:
        """Where the next sound chunk begins."""
        while start < end:
            data = os.pread(self._file(path), _SEEK_BYTES, start)
            at = -1
            while (at := data.find(MAGIC, at + 1)) >= 0:
                if self._chunk_at(path, start + at, end):
                    return start + at
            start += max(1, len(data) - len(MAGIC) + 1)
        return None

    def _file(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def _told(self, path: Path, start: int, length: int, why: str) -> None:
        damage = Damage(path, start, length, why)
        if damage not in self.damage:
            self.damage.append(damage)


class ColumnWriter:
    """Appends chunks; only the process that owns the store may make one."""

    def __init__(self, folder: Path, file_bytes: int = FILE_BYTES) -> None:
        self._folder, self._file_bytes = folder, file_bytes
        reader = ColumnReader(folder)
        self.through, self.generations = reader.through, reader.generations
        reader.close()
        paths = files_of(folder)
        self._number, self._file, self._end = len(paths) - 1, -1, 0
        if paths:
            self._number = int(paths[-1].stem.rpartition("-")[2])
            self._open()
            if reader.torn:
                os.ftruncate(self._file, self._end - reader.torn)
                self._end -= reader.torn

    def append(self, chunk: bytes) -> None:
        """Add a chunk and see it on the disk; raises OSError, with nothing added."""
        if self._file < 0 or self._end + len(chunk) > self._file_bytes:
            self.close()
            self._number += 1
            self._open()
        try:
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(chunk)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._folder / f"columns-{self._number:05d}.pcc", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._end = os.fstat(self._file).st_size


def files_of(folder: Path) -> list[Path]:
    """A store's files, oldest first."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if _FILE.fullmatch(name)]
    except OSError:
        return []
