"""With what settings, on how many ranks and threads the steps between two snapshots were taken, from the run's history.

A *leg* is a stretch of steps that one start of the run took. Where it begins, and which settings were changed there, the history tells; the last
leg's settings are those that the later snapshot names, and those of earlier ones follow by undoing the changes. Steps that a crash took back belong
to no leg. Changes that a leg took up between two steps (`requests/agenda.py`) are not borders: whoever takes its steps again takes them up as it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.config import Config, flat, with_values
from penstock.engine.requests.agenda import Due, is_live, live_changes, recorded
from penstock.store import Event, Manifest

Changes = dict[str, list[Any]]


@dataclass(frozen=True)
class Leg:
    """Steps after `first` up to `last`, the settings of the first of them, the layout with its ranks, threads and device, as recorded; and the
    changes on the way.
    """

    first: int
    last: int
    config: Config
    layout: dict[str, Any]
    changes: tuple[Due, ...] = ()

    @property
    def ranks(self) -> int:
        """Ranks that took the steps."""
        return int(self.layout.get("ranks", 1))


@dataclass
class _Start:
    """Where a leg begins, and what had been changed just before."""

    step: int
    changes: Changes = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)


def legs(events: Sequence[Event], begin: Manifest, end: Manifest) -> list[Leg]:
    """The legs from one snapshot to another, in order."""
    config = recorded(end)
    layout, last, found = end.about.get("layout") or {}, end.step, []
    begun = flat(recorded(begin)) if begin.about.get("config") else {}
    live = [one for one in live_changes(events) if begin.step <= one.step < end.step and (one.step > begin.step or not (begun and one.is_in(begun)))]
    starts = [start for start in _starts(events) if start.step < end.step]
    for index in range(len(starts) - 1, -1, -1):
        start = starts[index]
        if start.step <= begin.step:
            break
        config, own = _before(config, live, start.step)
        found.append(Leg(start.step, last, config, layout, own))
        config = with_values(config, {name: before for name, (before, _) in start.changes.items()})
        layout, last = (starts[index - 1].layout if index else begin.about.get("layout")) or layout, start.step
    config, own = _before(config, live, begin.step)
    return [Leg(begin.step, last, config, layout, own), *reversed(found)]


def _before(config: Config, live: list[Due], first: int) -> tuple[Config, tuple[Due, ...]]:
    """The settings before the changes from step `first` on, and these, which are taken out of `live`."""
    own = [one for one in live if one.step >= first]
    for one in reversed(own):
        config = with_values(config, {name: before for name, (before, _) in one.settings.items()})
        live.remove(one)
    return config, tuple(own)


def _starts(events: Sequence[Event]) -> list[_Start]:
    """The starts whose steps have not been taken back, in the order of their steps."""
    starts: list[_Start] = []
    changes: Changes = {}
    for event in events:
        if (event.kind == "change" and not is_live(event)) or (event.kind == "fork" and "from" in event.data):
            changes = _then(changes, event.data.get("settings"))
        elif event.kind in ("start", "resume") and event.step is not None:
            while starts and starts[-1].step >= event.step:
                changes = _then(starts.pop().changes, changes)
            layout = event.data.get("layout")
            starts.append(_Start(event.step, changes, layout if isinstance(layout, dict) else {}))
            changes = {}
    return starts


def _then(first: Changes, second: Any) -> Changes:
    """Two sets of changes one after the other as one."""
    both = dict(first)
    for name, (before, after) in (second or {}).items():
        both[name] = [first[name][0] if name in first else before, after]
    return both
