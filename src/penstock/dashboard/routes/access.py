"""Addresses of who asks: what they may, and logging in."""

from __future__ import annotations

import os
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from penstock import __version__
from penstock.dashboard.access import COOKIE
from penstock.dashboard.answer import Answer
from penstock.dashboard.described import Credentials, Me
from penstock.dashboard.guard import caller_of
from penstock.dashboard.house import House, house_of
from penstock.dashboard.plain import Refusal

router = APIRouter(tags=["access"])
Here = Annotated[House, Depends(house_of)]


@router.get("/me", response_model=Me)
def me(here: Here, request: Request) -> Answer:
    """Who the server is, and whether who asks may act."""
    return Answer(_told(here, here.access.has_token(request.headers, request.cookies)))


@router.post("/login", response_model=Me)
def login(here: Here, request: Request, given: Credentials) -> Answer:
    """Give the token once, and get a cookie for it."""
    caller = caller_of(request.scope)
    if here.access.wrong.left(caller) < 1.0:
        raise Refusal(429, "too many wrong tokens came from there; wait a minute")
    if not here.access.is_token(given.token):
        here.access.wrong.take(caller)
        raise Refusal(401, "that is not the token of this server")
    answer = Answer(_told(here, may_act=True))
    answer.set_cookie(COOKIE, here.access.cookie, httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/")
    return answer


def _told(here: House, may_act: bool) -> dict[str, Any]:
    return {"may_act": may_act, "host": here.access.host, "version": __version__, "runs_dir": str(here.catalog.folder), "pid": os.getpid()}
