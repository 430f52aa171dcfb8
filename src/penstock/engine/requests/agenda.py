"""Changes that a running run took up after a snapshot: going on from the snapshot, they are due again at their steps.

A change between two steps stands in the history with its step and settings, and at once in the run's `config.toml`, which so always has the settings
of the newest state, in memory or on disk. Whoever goes on from a snapshot begins with the settings that its step had, and takes the later changes
up again after the same steps as before: what comes out is bit for bit what it was. That is how a run is resumed that died after a change and before
its next snapshot, and how a replay goes through one (`story/legs.py`).

A setting that a resume sets by itself is that from then on: it is left out of the changes that are due.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.comm import World
from penstock.config import Config, flat, parse_config, with_values
from penstock.store import Event, Manifest, Run, read_history

#: What says of an event of a change that it was one between two steps, as `data["command"]` has it.
COMMAND = "change"


@dataclass(frozen=True)
class Due:
    """Settings (before, after) to be taken up after `step` steps."""

    step: int
    settings: dict[str, list[Any]]

    @property
    def values(self) -> dict[str, Any]:
        """The settings as they are to be."""
        return {name: after for name, (_, after) in self.settings.items()}

    def is_in(self, settings: Mapping[str, Any]) -> bool:
        """Whether these settings have what the change sets."""
        return all(settings[name] == value for name, value in self.values.items())

    def without(self, names: Iterable[str]) -> Due:
        """The same but for some settings."""
        left = set(names)
        return Due(self.step, {name: pair for name, pair in self.settings.items() if name not in left})


def is_live(event: Event) -> bool:
    """Whether an event is of a change between two steps."""
    return event.kind == "change" and event.data.get("command") == COMMAND and event.step is not None and bool(event.data.get("settings"))


def live_changes(events: Sequence[Event]) -> list[Due]:
    """The changes between two steps that count, by step: once each, without what was set otherwise on resuming."""
    found: list[Due] = []
    for event in events:
        if is_live(event):
            assert event.step is not None
            new = Due(event.step, event.data["settings"])
            found = [one for one in found if (one.step, one.settings.keys()) != (new.step, new.settings.keys())] + [new]
        elif event.kind == "change":
            set_anew = event.data.get("settings") or {}
            found = [one.without(set_anew) if one.step >= (event.step or 0) else one for one in found]
    return sorted((one for one in found if one.settings), key=lambda one: one.step)


def due_after(run: Run, manifest: Manifest) -> list[Due]:
    """The changes to take up when a run goes on from a snapshot, in order."""
    return due_from(run, manifest.step, flat(recorded(manifest))) if manifest.about.get("config") else []


def due_from(run: Run, step: int, settings: Mapping[str, Any]) -> list[Due]:
    """The changes to take up after `step` steps and more, by a run that has these settings now, in order."""
    told = [Due(at, values) for at, values in run.read("replay.json").get("changes", [])]
    later = [one for one in told or live_changes(read_history(run.folder).events) if one.step >= step]
    return [one for one in later if one.step > step or not one.is_in(settings)]


def agreed_due(world: World, own: Sequence[Due]) -> list[Due]:
    """The changes that the lead found to be due, on all ranks, which must all call it."""
    return [Due(**entry) for entry in json.loads(world.share(json.dumps([vars(one) for one in own])))]


def settings_at(config: Config, due: Sequence[Due], manifest: Manifest) -> Config:
    """The settings of a run as a snapshot's step had them, `config` being those of its newest state."""
    made_with = flat(recorded(manifest)) if due else {}
    return with_values(config, {name: made_with[name] for one in due for name in one.settings}) if due else config


def recorded(manifest: Manifest) -> Config:
    """The settings that made a snapshot; raises `UserError` if another version of Penstock recorded them."""
    return parse_config(manifest.about["config"], f"snapshot of step {manifest.step}")
