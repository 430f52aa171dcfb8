"""Files of JSON lines that several processes add to and others follow: appended whole, torn ends closed off, damage skipped.

A line is one write to a file opened for appending, so lines of two writers do not mix. Cost: some 20 µs a line, and a flush to the disk where asked.
When not to use it: for what comes every step (`series/rows.py`).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Bytes read at once.
AT_ONCE = 4 << 20


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, on the disk when this returns; raises OSError."""
    data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data  # a crash or a full disk tore the last one
        if os.write(descriptor, data) < len(data):
            raise OSError(28, "only a part of the line was taken")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Following:
    """The lines of a file as they come; what is no JSON object is left out and counted."""

    def __init__(self, path: Path) -> None:
        self.path, self.damaged = path, 0
        self._at = 0

    def read(self) -> list[dict[str, Any]]:
        """The whole lines that came since the last call; none where there is no file."""
        found: list[dict[str, Any]] = []
        with suppress(OSError), open(self.path, "rb") as file:
            if os.fstat(file.fileno()).st_size < self._at:
                self._at = 0  # another file took its place
            file.seek(self._at)
            while data := file.read(AT_ONCE):
                whole = data.rfind(b"\n") + 1
                self._at += whole
                found += [line for raw in data[:whole].splitlines() if (line := self._parsed(raw)) is not None]
                if not whole:
                    break
                file.seek(self._at)
        return found

    def _parsed(self, raw: bytes) -> dict[str, Any] | None:
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            self.damaged += bool(raw.strip())
            return None
        return line
