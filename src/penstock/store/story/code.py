"""The uncommitted changes that a run was started with: `RUN/code/<digest>.diff`, each kept once, whatever number of starts and snapshots name it.

The digest is BLAKE3's first 20 bytes over the file, as a chunk's is. Reading checks it, so that what a diff says is what ran.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from blake3 import blake3

from penstock.config import UserError
from penstock.store.places.folder import LocalFolder

FOLDER = "code"
_DIGEST = re.compile(r"[0-9a-f]{40}")


def keep_diff(run: Path, diff: bytes) -> str:
    """Store a diff in a run's folder unless it is there, and return its digest; nothing and '' for an empty one. Raises `UserError`."""
    if not diff:
        return ""
    digest = blake3(diff).digest(length=20).hex()
    folder, name = LocalFolder(run), f"{FOLDER}/{digest}.diff"
    if not folder.has(name):
        folder.write(name, diff)
    return digest


def read_diff(run: Path, digest: str) -> bytes:
    """A kept diff, checked; empty for ''. Raises `UserError` where it is missing or damaged, or the digest is none."""
    if not digest:
        return b""
    if not _DIGEST.fullmatch(digest):
        raise UserError(f"{digest!r} does not name a diff; the record that names it is damaged")
    file = run / FOLDER / f"{digest}.diff"
    try:
        diff = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); copy it from where the run was made") from None
    if not is_diff(file.name, diff):
        raise UserError(f"{file} is damaged: its content has another digest than its name; copy it anew from where the run was made")
    return diff


def is_diff(name: str, content: bytes) -> bool:
    """Whether a file's content is what its name says."""
    return name.rpartition("/")[2] == f"{blake3(content).digest(length=20).hex()}.diff"


def diffs_of(about: dict[str, Any]) -> list[str]:
    """Names in the run's folder of the diffs that a snapshot's `about` names."""
    code = about.get("code")
    records = code.values() if isinstance(code, dict) else []
    digests = {str(record.get("diff")) for record in records if isinstance(record, dict)}
    return [f"{FOLDER}/{digest}.diff" for digest in sorted(digests) if _DIGEST.fullmatch(digest)]
