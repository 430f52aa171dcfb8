"""The addresses of the page: all that are no other's.

Each file has an ETag, so a browser asks whether it changed and is told in a few bytes. Whatever is no file and no part of the API is the page, which
finds its own way (`/r/<id>/explore`).
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from penstock.dashboard.page import INDEX, File
from penstock.dashboard.plain import Refusal


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
