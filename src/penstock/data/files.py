"""Writing files so that they are either whole or absent, and locks with a deadline.

A file is written under a temporary name, flushed to disk, and renamed; rename is atomic on POSIX file systems. Locks are
advisory file locks that the kernel releases when their holder dies, so a killed preparation never blocks the next.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout

from penstock.config import UserError

#: Longest wait for another process that prepares the same corpus.
LOCK_DEADLINE_S = 24 * 3600.0
CHECKSUM_BLOCK = 4 << 20


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None, deadline_s: float = LOCK_DEADLINE_S) -> Iterator[None]:
    """Hold the lock file `path`; calls `on_wait` if another process holds it; raises `UserError` after `deadline_s`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait is not None:
            on_wait()
        try:
            lock.acquire(timeout=deadline_s, poll_interval=0.1)
        except Timeout:
            raise UserError(f"another process has held {path} for {deadline_s:.0f} s; end that process, or wait for it to finish") from None
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically and durably."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """XXH3 (64 bits, hexadecimal) of a file's bytes, read in blocks of 4 MiB."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(CHECKSUM_BLOCK):
            digest.update(block)
    return digest.hexdigest()
