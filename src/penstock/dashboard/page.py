"""The page's files, read once: `index.html` and what it loads, which `web/` builds into `page/` and the wheel carries.

Cost: the page's size in memory, twice (packed, too). When not to use it: for files of runs; none is ever given out as a file.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
    ".png": "image/png", ".ico": "image/x-icon", ".woff2": "font/woff2", ".json": "application/json", ".webmanifest": "application/manifest+json",
    ".txt": "text/plain; charset=utf-8",
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """A file of the page, plain and packed."""

    content: bytes
    packed: bytes
    type: str
    tag: str


def page_files(folder: Path = FOLDER) -> dict[str, File]:
    """The page's files by their path in the folder; none where it was not built."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _TYPES:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
            found[path.relative_to(folder).as_posix()] = File(content, gzip.compress(content, 6, mtime=0), _TYPES[path.suffix], tag)
    return found
