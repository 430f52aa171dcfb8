"""The shapes of answers, as the OpenAPI description tells them; answers themselves are made where the facts are.

What the run's own files hold (identity, settings, summary) is described as an object and no further. Numbers that are not finite are words. Cost:
none while serving, as answers are not checked against these again; a test does. When not to use it: for series, which are bytes (`courses.py`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

#: A number, or "nan", "inf", "-inf".
Number = float | str


class Told(BaseModel, extra="allow"):
    """Base of all answers."""


class Mistake(BaseModel):
    """Why a request was refused."""

    error: str


class RunRow(Told):
    """A run in the list (`rows.Row`)."""

    id: str
    name: str
    state: str
    created: float
    updated: float
    step: int
    steps: int | None
    loss: Number | None
    val_loss: Number | None
    tokens: int | None
    tokens_per_s: Number | None
    parameters: int | None
    ranks: int | None
    alerts: dict[str, int]
    label: str
    error: str | None


class Runs(Told):
    """A page of the list, the newest first; `total` matched."""

    total: int
    runs: list[RunRow]


class RunFacts(Told):
    """What is known of a run beside its metrics."""

    row: RunRow
    identity: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    defaults: dict[str, Any]
    summary: dict[str, Any]
    layout: dict[str, Any]
    evals: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    links: dict[str, Any]


class Happened(Told):
    """Something that happened to a run; `time` is unix seconds."""

    seq: int | None
    time: float
    step: int | None
    kind: str
    text: str


class OverviewTold(Told):
    """How a run stands."""

    run: str
    state: str
    health: str
    time: float
    step: int
    steps: int
    loss: Number | None
    tokens_per_s: Number | None
    eta_s: Number | None
    ranks: dict[str, int]
    ranks_of: int
    reporting: int
    watched: bool
    resolved: int
    metrics: dict[str, dict[str, Any]]
    alerts: list[dict[str, Any]]
    mfu: Number | None
    tokens: int | None
    validation: dict[str, Number | None] | None
    cost: dict[str, Number | None]  # hours of devices, their price, and the money so far and at the end in `currency`
    events: list[Happened]


class Metric(Told):
    """A metric that a run measured, and what its catalogue says of it; `group` is the first part of its name."""

    name: str
    unit: str
    meaning: str
    bad: str
    together: str
    group: str


class MetricList(Told):
    """All metrics of a run."""

    metrics: list[Metric]


class AlertList(Told):
    """All alerts of a run, the newest first."""

    alerts: list[dict[str, Any]]


class Story(Told):
    """A run's history."""

    snapshots: list[dict[str, Any]]
    events: list[dict[str, Any]]
    head: str
    damage: list[str]
    notes: list[str]
    left_out: int
    parent: dict[str, Any] | None
    children: list[dict[str, Any]]


class Differences(Told):
    """What differs between two snapshots: changed values by part, code, and how many tensors, and which, are of which kind."""

    parts: list[dict[str, Any]]
    code: list[dict[str, Any]]
    tensors: dict[str, dict[str, Any]]
    same_state: bool


class Compared(Told):
    """In what runs differ."""

    runs: list[dict[str, Any]]
    settings: list[dict[str, Any]]
    results: list[dict[str, Any]]
    code: dict[str, Any]


class RanksTold(Told):
    """A metric of every rank over time: base64 of float32 (`mean`, `most`) and bytes (`there`) [rows, buckets]; a bucket has first and last step."""

    names: list[str]
    source: str
    damage: list[str]
    through: int
    ranks_of: int
    name: str
    unit: str
    meaning: str
    ranks: int
    per_row: int
    width: int
    buckets: list[list[int]]
    mean: str
    most: str
    there: str


class TimelineTold(Told):
    """A step as ranks ran it: of each rank its spans (name, start in unix seconds, seconds); and the pipeline's plan."""

    steps: list[dict[str, int]]
    step: int | None
    start: float
    seconds: float
    rows: list[dict[str, Any]]
    ranks: int
    first: int
    plan: dict[str, Any] | None
    damage: list[str]


class LayoutTold(Told):
    """Where ranks lie: axes outermost first, hosts and own seconds by rank, and the pipeline's stages."""

    axes: list[dict[str, Any]]
    ranks: int
    drawn: int
    experts: int
    text: str
    hosts: list[str]
    own: list[Number | None]
    step: int
    stages: list[dict[str, Any]]


class Me(Told):
    """Who asks, and whom."""

    may_act: bool
    host: str
    version: str
    runs_dir: str
    pid: int


class Acted(Told):
    """What an action did: the command, its exit code (None: it was not run), and what it printed."""

    command: str
    exit: int | None
    text: str


class Credentials(BaseModel, extra="forbid"):
    """What a login is asked with."""

    token: str


class Action(BaseModel, extra="forbid"):
    """What is to be done with a run; which of the rest counts depends on the kind (`actions.py`)."""

    kind: Literal["snapshot", "scale", "change", "fork", "acknowledge", "silence", "stop"]
    confirm: bool = False
    dry: bool = False
    ranks: int | None = None
    settings: dict[str, str | int | float | bool] = {}
    accept_loss: bool = False
    step: int | None = None
    snapshot: str | None = None
    name: str | None = None
    alert: str | None = None
    alert_kind: str | None = None
    hours: float = 0.0
