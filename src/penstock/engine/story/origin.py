"""What a start of a run is made of, as `run.json` tells it: the code with its uncommitted changes, and the environment.

Written when a run is made and each time it goes on, so that the snapshots of that start can name it.
"""

from __future__ import annotations

from typing import Any

from penstock.plan import describe_code, describe_environment
from penstock.store import Run
from penstock.store.story.code import keep_diff


def record_origin(run: Run) -> None:
    """Put this start's code and environment into `run.json`, and diffs beside it; raises `UserError` where the disk refuses."""
    code = {name: checkout.as_dict() | {"diff": keep_diff(run.path, checkout.diff)} for name, checkout in describe_code().items()}
    run.update("run.json", environment=describe_environment(), code=code)


def origin_of(run: Run) -> dict[str, Any]:
    """Settings, code and environment of a run as its files have them, for the `about` of a snapshot that nobody trained."""
    identity = run.read("run.json")
    return {"config": run.config().tree(), "code": identity.get("code"), "environment": identity.get("environment")}
