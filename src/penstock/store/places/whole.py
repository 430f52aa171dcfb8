"""A folder that appears whole or not at all: filled beside its place under a hidden name, and moved there when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.config import UserError, disk_errors


@contextmanager
def whole_folder(target: Path, doing: str) -> Iterator[Path]:
    """The folder to fill, of the same name; it takes the place of `target` when the block ends well, and is gone otherwise.

    Raises `UserError` if `target` is there and not an empty folder, and when the disk is full or refuses. `doing` completes "the disk is full while".
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; choose another")
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(target.parent, doing):
            folder = partial / target.name
            folder.mkdir(parents=True)
            yield folder
            os.replace(folder, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
