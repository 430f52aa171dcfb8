"""Turning the operating system's refusal to write into an error that says what to do, and bringing a folder's entries to the disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.config.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextmanager
def disk_errors(folder: Path, doing: str) -> Iterator[None]:
    """Raise a `UserError` that names `folder` when the block finds the disk full or the folder closed to us."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            free = free_bytes(folder)
            raise UserError(f"the disk of {folder} is full while {doing} ({free} bytes free); free some space or move the run") from error
        if error.errno in REFUSED:
            raise UserError(f"cannot write to {folder} while {doing}: {error.strerror}; choose a folder you may write to") from error
        raise


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds `folder`, or would hold it."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def sync_folder(path: Path) -> None:
    """Flush a folder's entries (creations and renames) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
