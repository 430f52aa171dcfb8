"""The address of what may be done with a run; it wants the token wherever the server listens."""

from __future__ import annotations

import getpass
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from penstock.dashboard.answer import Answer
from penstock.dashboard.described import Acted, Action
from penstock.dashboard.guard import caller_of
from penstock.dashboard.house import House, house_of
from penstock.dashboard.plain import Refusal

router = APIRouter(tags=["actions"])
Here = Annotated[House, Depends(house_of)]


@router.post("/runs/{id}/actions", response_model=Acted)
def act(here: Here, request: Request, id: str, action: Action) -> Answer:
    """Have a run save, stop, scale, change or fork, or say something to an alert of it; `dry` only tells the command."""
    if not here.access.has_token(request.headers, request.cookies):
        raise Refusal(401, "acting needs the token; open the link that the server printed, or log in")
    if not here.access.actions.take(caller_of(request.scope)):
        raise Refusal(429, "too many actions in a minute; wait a little")
    run = here.catalog.run(id)
    return Answer(here.actions.act(run, action, f"{getpass.getuser()} on the page").as_dict())
