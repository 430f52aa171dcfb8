"""Who uses a run's folder: one writer, one change of what is stored at a time, and readers of single snapshots.

    .writer.lock      held while a run trains, with its holder in .writer.json: a second writer is refused, and the run is known to be running
    .store.lock       held for a moment: while a manifest is published, while unused packs are removed
    .reading/*.lock   held while a snapshot is loaded or sent elsewhere, named by its id: it is not removed meanwhile

All are advisory locks of files, which the system lets go of when their holder dies, however it does; nothing has to be cleaned up. Only local
folders have them, and disks shared between nodes where these pass on `flock`; what lies in a bucket is nobody's to train in. Every wait ends.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from penstock.config import UserError, disk_errors
from penstock.store.cells.chunks import Damaged
from penstock.store.places.folder import Folder, LocalFolder

if TYPE_CHECKING:
    from penstock.store.snapshots.manifest import Snapshot

WRITER, HOLDER, STORE, READING = ".writer.lock", ".writer.json", ".store.lock", ".reading"
#: Waits, in seconds: a writer for someone who only looks whether there is one; a change for a large store's collection.
WRITER_WAIT_S, CHANGE_WAIT_S = 2.0, 120.0
#: Stands for the id where all snapshots are read.
ALL = "all"
_LEASE = re.compile(rf"([0-9a-f]{{12}}|{ALL})-[0-9a-f]{{8}}\.lock")


@contextmanager
def writer_lock(run: Path) -> Iterator[None]:
    """Be the one who writes a run; raises `UserError` naming the process that is."""
    lock = FileLock(run / WRITER, thread_local=False)
    with disk_errors(run, "locking the run"):
        try:
            lock.acquire(timeout=WRITER_WAIT_S, poll_interval=0.05)
        except Timeout:
            raise UserError(f"{run} is being written by {_holder(run)}; wait for it to end, or stop it, or use another run's folder") from None
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        LocalFolder(run).write(HOLDER, json.dumps(holder).encode())
        yield
    finally:
        with suppress(OSError):
            (run / HOLDER).unlink(missing_ok=True)
        lock.release()


def current_writer(run: Path) -> str | None:
    """The process that holds a run's writer lock, in words; None if there is none."""
    return _holder(run) if _held(run / WRITER) else None


@contextmanager
def store_lock(folder: Folder, name: str = STORE) -> Iterator[None]:
    """Hold a lock for a change of what a local folder stores; raises `UserError` if another holds it for long."""
    if not isinstance(folder, LocalFolder):
        yield
        return
    lock = FileLock(folder.path / name, thread_local=False)
    with disk_errors(folder.path, "locking it"):
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=CHANGE_WAIT_S, poll_interval=0.02)
        except Timeout:
            raise UserError(f"another process has held {folder.path / name} for {CHANGE_WAIT_S:.0f} s; end that process, or wait for it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def in_use(snapshot: Snapshot) -> Iterator[None]:
    """Keep a snapshot from being removed while the block reads it; raises `Damaged` if it has just been removed."""
    with _reading(snapshot.folder, snapshot.id):
        if not snapshot.folder.has(snapshot.file):
            where = f"snapshot {snapshot.file} in {snapshot.folder.label}"
            raise Damaged(f"{where} has just been removed, as retention has it; pin what must stay", snapshot.file)
        yield


@contextmanager
def all_in_use(folder: Folder) -> Iterator[None]:
    """Keep every snapshot of a run from being removed meanwhile."""
    with _reading(folder, ALL):
        yield


def snapshots_in_use(run: Path) -> set[str]:
    """The first 12 digits of ids of snapshots that someone reads, or ALL; locks that dead readers left behind are removed."""
    used = set()
    for file in (run / READING).glob("*.lock"):
        if (match := _LEASE.fullmatch(file.name)) and _held(file):
            used.add(match[1])
        else:
            with suppress(OSError):
                file.unlink()
    return used


@contextmanager
def _reading(folder: Folder, what: str) -> Iterator[None]:
    """Where the folder cannot be written to, nothing is held: whoever may remove there must know what they do."""
    if not isinstance(folder, LocalFolder) or not os.access(folder.path, os.W_OK):
        yield
        return
    file = folder.path / READING / f"{what}-{secrets.token_hex(4)}.lock"
    file.parent.mkdir(exist_ok=True)
    lock = FileLock(file, thread_local=False)
    with store_lock(folder):  # whatever is being removed is gone after this
        lock.acquire(timeout=WRITER_WAIT_S)
    try:
        yield
    finally:
        lock.release()
        file.unlink(missing_ok=True)


def _held(file: Path) -> bool:
    if not file.exists():
        return False
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a disk that cannot be written to has no writer
        return False
    lock.release()
    return False


def _holder(run: Path) -> str:
    try:
        holder = json.loads((run / HOLDER).read_text(encoding="utf-8"))
        return f"process {int(holder['pid'])} on host {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
