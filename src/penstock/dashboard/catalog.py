"""The runs below a folder: found, named for addresses, and each told in a row.

A run's `id` is its folder's path below the runs' folder with `~` as `~0` and `/` as `~1` (the escapes of JSON Pointer, RFC 6901), so that it is one
segment of an address. An id leads to a run only if the run was found: whatever else an address says (`..`, an absolute path, a link that leads out of
the folder) leads nowhere. Runs lie directly in the folder or one folder deeper.

Rows are kept and made again when one of the files they are made of has changed (`rows.py`). Cost: for 1,000 runs about 0.5 s the first time and 50 ms
later. When not to use it: for a run of which all is asked (`facts.py`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from penstock.dashboard.place import id_of_path
from penstock.dashboard.plain import Refusal
from penstock.dashboard.rows import Row, Signature, row_of, signature_of
from penstock.store.runs import Run

#: Seconds for which a search for folders counts, and folders that are looked at, at most.
FRESH_S, MOST_FOLDERS = 0.5, 20_000
#: Files by which a folder is known to be a run's, whole or damaged.
_SIGNS = ("run.json", "config.toml", "history.jsonl")


class Catalog:
    """The runs below `folder`; may be asked by several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._found: dict[str, Path] = {}
        self._looked = -FRESH_S
        self._rows: dict[str, tuple[Signature, Row]] = {}

    def run(self, id: str) -> Run:
        """The run of an id; raises `Refusal` if there is none."""
        found = self._folders().get(id)
        if found is None:
            raise Refusal(404, "there is no such run here (any more)")
        return Run(found)

    def id_of(self, path: str | Path) -> str | None:
        """The id of the run in a folder; None if it is not one of these."""
        real = Path(path).resolve()
        return next((id for id, folder in self._folders().items() if folder == real), None)

    def rows(self) -> list[Row]:
        """All runs, the newest first."""
        found = self._folders()
        rows = [self.row(id, folder) for id, folder in found.items()]
        for gone in self._rows.keys() - found.keys():
            self._rows.pop(gone, None)
        return sorted(rows, key=lambda row: (-row["created"], row["id"]))

    def row(self, id: str, folder: Path) -> Row:
        """A run's row as of now."""
        signature = signature_of(folder)
        kept = self._rows.get(id)
        if kept is None or kept[0] != signature:
            kept = self._rows[id] = (signature, row_of(id, folder, signature))
        return kept[1]

    def _folders(self) -> dict[str, Path]:
        with self._lock:
            if time.monotonic() - self._looked >= FRESH_S:
                self._found = dict(self._look())
                self._looked = time.monotonic()
            return self._found

    def _look(self) -> Iterator[tuple[str, Path]]:
        """Ids and folders of the runs."""
        root = str(self.folder)
        for name in _folders_in(root)[:MOST_FOLDERS]:
            here = _is_run(f"{root}/{name}")
            paths = [name] if here else [path for one in _folders_in(f"{root}/{name}") if _is_run(f"{root}/{(path := f'{name}/{one}')}")]
            yield from ((id_of_path(path), Path(f"{root}/{path}")) for path in paths)


def _folders_in(folder: str) -> list[str]:
    """Names of the folders directly in one that are not links and not hidden."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _is_run(folder: str) -> bool:
    return any(os.path.exists(f"{folder}/{sign}") for sign in _SIGNS)
