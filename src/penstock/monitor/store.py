"""The metrics store of a run: rows appended as JSON lines, one file a kind, safe against a crash at any byte.

A row is one line, handed to the operating system in one unbuffered write, so a killed process loses none and a reader sees all up
to now; a line torn by a full disk or a lost machine is skipped on reading and closed off on writing. Cost: 20 to 40 µs a row of
twenty values, nearly all of it printing numbers. When not to use it: for millions of rows that must be queried quickly; it is
read whole, at about 30 µs a row.
"""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from penstock.config import disk_errors

#: Bytes at the end of a file in which its last row is.
LAST_BYTES = 1 << 16


class MetricStore:
    """Append-only rows by kind ("train", "eval", "sample", "event") below a folder, which is made when the first row comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}

    def append(self, kind: str, row: dict[str, Any]) -> None:
        """Add a row; `time` (unix seconds) is added to it. Raises `UserError` on a full disk."""
        line = (json.dumps({"time": time.time()} | row) + "\n").encode()
        with disk_errors(self._folder, "writing metrics"):
            if kind not in self._files:
                self._files[kind] = self._opened(kind)
            if self._files[kind].write(line) < len(line):
                raise OSError(errno.ENOSPC, "only a part of the row was taken")

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All complete rows of a kind, oldest first."""
        if not self._path(kind).exists():
            return []
        with open(self._path(kind), "rb") as lines:
            return [row for line in lines if (row := _parsed(line)) is not None]

    def last(self, kind: str) -> dict[str, Any] | None:
        """The last complete row of a kind, without reading the others."""
        if not self._path(kind).exists():
            return None
        with open(self._path(kind), "rb") as lines:
            lines.seek(max(0, lines.seek(0, os.SEEK_END) - LAST_BYTES))
            rows = [row for line in lines if (row := _parsed(line)) is not None]
        return rows[-1] if rows else None

    def truncate_after(self, step: int) -> None:
        """Drop rows of steps beyond `step`, which a run resumed from `step` will write again; events are history and stay."""
        self.close()
        if all((self.last(path.stem) or {}).get("step", 0) <= step for path in self._folder.glob("*.jsonl") if path.stem != "event"):
            return
        for path in self._folder.glob("*.jsonl"):
            kept = [row for row in self.read(path.stem) if row.get("step", 0) <= step or path.stem == "event"]
            partial = path.with_suffix(".partial")
            with disk_errors(self._folder, "writing metrics"), open(partial, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)

    def close(self) -> None:
        """Close the files; a later append opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _path(self, kind: str) -> Path:
        return self._folder / f"{kind}.jsonl"

    def _opened(self, kind: str) -> IO[bytes]:
        """The kind's file, open for appending at the start of a line."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = open(self._path(kind), "a+b", buffering=0)  # noqa: SIM115 (stays open)
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        return file


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
