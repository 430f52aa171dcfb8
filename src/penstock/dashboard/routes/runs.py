"""Addresses of runs as a whole: the list, a run's facts, its history, its alerts, several compared."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from penstock.dashboard.answer import Answer
from penstock.dashboard.between import between
from penstock.dashboard.described import AlertList, Compared, Differences, RunFacts, Runs, Story
from penstock.dashboard.facts import alerts_told, compared, run_facts, story
from penstock.dashboard.house import House, house_of
from penstock.dashboard.plain import Refusal
from penstock.monitor.alerts import read_alerts

router = APIRouter(tags=["runs"])
Here = Annotated[House, Depends(house_of)]
Snapshot = Annotated[str, Query(pattern=r"^[0-9a-f]{4,64}$")]
#: Runs in an answer, and compared with one another, at most.
MOST_ROWS, MOST_COMPARED = 2000, 16


@router.get("/runs", response_model=Runs)
def runs(
    here: Here,
    search: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = MOST_ROWS,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Answer:
    """The runs whose name, label or state has all words of `search`, the newest first."""
    words = search.casefold().split()
    found = [row for row in here.catalog.rows() if all(word in f"{row['name']} {row['label']} {row['state']}".casefold() for word in words)]
    return Answer({"total": len(found), "runs": found[offset : offset + limit]})


@router.get("/runs/{id}", response_model=RunFacts)
def run(here: Here, id: str) -> Answer:
    """What is known of a run beside its metrics."""
    found = here.catalog.run(id)
    return Answer(run_facts(here.catalog, found, here.catalog.row(id, found.path)))


@router.get("/runs/{id}/history", response_model=Story)
def history(here: Here, id: str) -> Answer:
    """A run's snapshots, events and forks."""
    return Answer(story(here.catalog, here.catalog.run(id)))


@router.get("/runs/{id}/diff", response_model=Differences)
def diff(here: Here, id: str, before: Snapshot, after: Snapshot) -> Answer:
    """What differs between two of a run's snapshots: settings, code, environment, data, layout, tensors."""
    return Answer(between(here.catalog.run(id), before, after))


@router.get("/runs/{id}/alerts", response_model=AlertList)
def alerts(here: Here, id: str) -> Answer:
    """A run's alerts, the newest first, resolved ones too."""
    return Answer({"alerts": alerts_told(read_alerts(here.catalog.run(id).path))})


@router.get("/compare", response_model=Compared)
def compare(here: Here, run: Annotated[list[str], Query(min_length=1, max_length=MOST_COMPARED)]) -> Answer:
    """In what runs differ: settings, results, code."""
    found: list[Any] = [here.catalog.run(id) for id in run]
    rows = [here.catalog.row(id, one.path) for id, one in zip(run, found)]
    if damaged := next((row for row in rows if row["state"] == "damaged"), None):
        raise Refusal(409, damaged["error"] or f"{damaged['name']} is damaged")
    return Answer(compared(list(zip(found, rows))))
