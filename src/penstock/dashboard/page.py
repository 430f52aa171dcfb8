"""The page's files, read once: `index.html` and what it loads, which `web/` builds into `page/` and the wheel carries.

Each file has an ETag, so a browser asks whether it changed and is told in a few bytes. Whatever is no file and no part of the API is the page, which
finds its own way (`/r/<id>/explore`). Cost: the page's size in memory, twice (packed, too). When not to use it: for files of runs; none is ever given
out as a file.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from penstock.dashboard.plain import Refusal

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


def page_router(files: dict[str, File]) -> APIRouter:
    """The addresses of the page: all that are no other's."""
    router = APIRouter()

    @router.get("/{path:path}", include_in_schema=False)
    def page(request: Request, path: str) -> Response:
        file = files.get(path)
        if file is None:
            if path.startswith(("api/", "assets/")) or "." in path.rpartition("/")[2]:
                raise Refusal(404, "there is nothing at this address")
            file = files.get(INDEX)
        if file is None:
            raise Refusal(503, "the page was not built; run `make page` in a checkout, or install a wheel that has it")
        return _answer(request, file)

    return router


def _answer(request: Request, file: File) -> Response:
    headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", "") and len(file.packed) < len(file.content):
        return Response(file.packed, media_type=file.type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(file.content, media_type=file.type, headers=headers)
