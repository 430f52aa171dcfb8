"""Addresses of the inside of the machine: ranks × time, a step as ranks ran it, the layout. Layers, traffic, memory and experts are series."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from penstock.dashboard.answer import Answer
from penstock.dashboard.described import LayoutTold, RanksTold, TimelineTold
from penstock.dashboard.facts import newest_layout
from penstock.dashboard.house import House, house_of
from penstock.dashboard.inside import known_grid, layout_told, ranks_told, timeline_told

router = APIRouter(prefix="/runs/{id}/inside", tags=["inside"])
Here = Annotated[House, Depends(house_of)]
MOST = 10**15


@router.get("/ranks", response_model=RanksTold)
def ranks(here: Here, id: str, name: Annotated[str, Query(max_length=200)] = "") -> Answer:
    """One metric of every rank over the whole run."""
    with here.opened.metrics(here.catalog.run(id).path) as found:
        return Answer(ranks_told(found, name))


@router.get("/pipeline", response_model=TimelineTold)
def pipeline(
    here: Here, id: str, step: Annotated[int | None, Query(ge=0, le=MOST)] = None, first: Annotated[int, Query(ge=0, le=MOST)] = 0
) -> Answer:
    """What ranks from `first` on did in a step, when; without a step, in the newest that they kept."""
    return Answer(timeline_told(here.catalog.run(id).path / "metrics", step, first))


@router.get("/layout", response_model=LayoutTold)
def layout(here: Here, id: str) -> Answer:
    """Where the ranks lie, and how long each works of its own."""
    run = here.catalog.run(id)
    with here.opened.metrics(run.path) as found:
        known = known_grid(found)
    return Answer(layout_told(run.path / "metrics", newest_layout(run.path), known))
