"""Addresses of what a run measured: how it stands, its metrics by name, their courses, and what is new in them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse

from penstock.dashboard.answer import Answer
from penstock.dashboard.courses import MEDIA_TYPE, MOST_NAMES, MOST_POINTS, Asked
from penstock.dashboard.described import MetricList, OverviewTold
from penstock.dashboard.house import House, house_of
from penstock.dashboard.live import Position
from penstock.dashboard.measured import courses_of, courses_told, metrics_told
from penstock.dashboard.plain import Refusal

router = APIRouter(tags=["metrics"])
Here = Annotated[House, Depends(house_of)]
Names = Annotated[list[str], Query(min_length=1, max_length=MOST_NAMES)]
Step = Annotated[int | None, Query(ge=0, le=10**15)]


@router.get("/runs/{id}/overview", response_model=OverviewTold)
def overview(here: Here, id: str) -> Response:
    """How a run stands."""
    return Response(here.overview(here.catalog.run(id)), media_type="application/json")


@router.get("/runs/{id}/metrics", response_model=MetricList)
def metrics(here: Here, id: str) -> Answer:
    """The metrics that a run measured, with what they mean."""
    with here.opened.metrics(here.catalog.run(id).path) as found:
        return Answer({"metrics": metrics_told(found)})


@router.get("/runs/{id}/series", response_class=Response, responses={200: {"content": {MEDIA_TYPE: {}}, "description": "Columns (courses.py)."}})
def series(
    here: Here,
    id: str,
    name: Names,
    first: Annotated[int | None, Query(alias="from", ge=0, le=10**15)] = None,
    last: Annotated[int | None, Query(alias="to", ge=0, le=10**15)] = None,
    points: Annotated[int, Query(ge=4, le=MOST_POINTS)] = 1000,
    x: Annotated[str, Query(pattern="^step$")] = "step",
) -> Response:
    """The courses of some metrics from one step to another, thinned so that no peak, dip or NaN is lost."""
    asked = Asked(tuple(dict.fromkeys(name)), first, last, points)
    run = here.catalog.run(id)
    with here.opened.metrics(run.path) as found:
        return Response(courses_told(found, id, run.path, asked, courses_of(found, asked)), media_type=MEDIA_TYPE)


@router.get("/runs/{id}/live", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}, "description": "Events."}})
async def live(
    here: Here,
    id: str,
    name: Annotated[list[str], Query(max_length=MOST_NAMES)] = [],  # noqa: B006 (FastAPI copies it)
    after: Annotated[str, Query(max_length=40)] = "",
    last_event_id: Annotated[str, Header(max_length=40)] = "",
) -> StreamingResponse:
    """What is new in a run, from a step on, as server-sent events: overview, rows, alerts, reset, ping."""
    asked = last_event_id or after
    position = Position.parse(asked) if asked else None
    if asked and position is None:
        raise Refusal(422, f"{asked!r} is no step to go on after")
    events = await here.hub.stream(here.catalog.run(id), tuple(dict.fromkeys(name)), position)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
