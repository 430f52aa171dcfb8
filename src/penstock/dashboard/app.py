"""The application: the API's addresses, the page, and one form for all mistakes. `guard.Guard` stands before it.

    app = build_app(runs_dir, Access("127.0.0.1", new_token()))       an ASGI application, to be served by uvicorn (`serve.py`) or asked in tests

Every answer that is no answer is `{"error": "one sentence"}` with a 4xx status, or 500 for a fault of ours, which is then told on stderr. The
description of all addresses is at `/api/v1/openapi.json`. Cost: FastAPI's, some 0.2 ms a request. When not to use it: in a training process.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from penstock import __version__
from penstock.config import UserError
from penstock.dashboard.access import Access
from penstock.dashboard.answer import Answer, refused
from penstock.dashboard.described import Mistake
from penstock.dashboard.guard import Guard
from penstock.dashboard.house import House
from penstock.dashboard.page import FOLDER, page_files
from penstock.dashboard.place import PREFIX
from penstock.dashboard.plain import Refusal
from penstock.dashboard.routes import access as access_routes
from penstock.dashboard.routes import actions as action_routes
from penstock.dashboard.routes import inside as inside_routes
from penstock.dashboard.routes import metrics as metrics_routes
from penstock.dashboard.routes import runs as runs_routes
from penstock.dashboard.routes.page import page_router

_MISTAKES: dict[int | str, dict[str, Any]] = {
    status: {"model": Mistake, "description": text}
    for status, text in {
        401: "The token is needed.", 403: "Asked by another name or site.", 404: "No such run.", 409: "The run cannot be read as it is.",
        413: "Too much.", 422: "Not understood.", 429: "Too often.", 503: "Too many viewers.",
    }.items()
}  # fmt: skip


def build_app(runs_dir: Path, access: Access, page: Path = FOLDER) -> FastAPI:
    """The application for the runs below a folder."""

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        yield
        await app.state.house.hub.close()

    description = f"{PREFIX}/openapi.json"
    app = FastAPI(title="Penstock's dashboard", version=__version__, openapi_url=description, docs_url=None, redoc_url=None, lifespan=living)
    app.state.house = House(runs_dir, access)
    app.add_middleware(Guard, access=access)
    for routes in (runs_routes, metrics_routes, inside_routes, access_routes, action_routes):
        app.include_router(routes.router, prefix=PREFIX, responses=_MISTAKES)
    app.include_router(page_router(page_files(page)))
    _tell_mistakes(app)
    return app


def _tell_mistakes(app: FastAPI) -> None:
    """Give every mistake the one form."""

    @app.exception_handler(Refusal)
    async def refusal(request: Request, error: Refusal) -> Answer:
        return refused(error.status, error.why)

    @app.exception_handler(UserError)
    async def bad_input(request: Request, error: UserError) -> Answer:
        return refused(409, str(error))

    @app.exception_handler(HTTPException)
    async def no_address(request: Request, error: HTTPException) -> Answer:
        return refused(error.status_code, f"{error.detail}: {request.method} {request.url.path}", dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def not_understood(request: Request, error: RequestValidationError) -> Answer:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return refused(422, f"{where}: {first['msg']}")

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Answer:
        traceback.print_exception(error)
        return refused(500, f"a fault of the dashboard's ({type(error).__name__}); its terminal shows where")
