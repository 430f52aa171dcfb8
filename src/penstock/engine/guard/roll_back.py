"""Going back: a run goes on from the newest snapshot before a fault began, and leaves out the samples that it had read since then.

    the lead chooses the snapshot and the samples, and tells all ranks
    → the snapshot is told to the history again, which makes it the newest (those after it stay until retention drops them)
    → the samples go into `data.skip`, in config and history
    → all ranks have agreed: every one of them builds itself anew from that snapshot, as a resumed run does (`worker.begun_again`)

It is what stopping, and resuming from an older snapshot with another `data.skip`, would come to; so it works on any layout, changes that came after
the snapshot are taken up again at their steps (`requests/agenda.py`), and a run that is resumed or replayed later finds everything in the history.
Up to where the fault began the steps are bit for bit what they were. A rank that is lost meanwhile leaves the run at the newest snapshot, whichever
that is then.

More than `alerts.most` times it does not go back to the same snapshot: then it is not the data, and the run stops.

Cost: building and reading the state, with the old one beside it until that is done, and the steps since the snapshot. When not to use it: for a fault
that is older than every snapshot that is kept (`snapshot.keep`).
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from penstock.config import UserError, with_values
from penstock.data import parse_skip
from penstock.engine.guard.judge import BadStep
from penstock.engine.guard.peers import Peers
from penstock.engine.requests.commands import Answer, Command, answer
from penstock.store import Damaged, append_event, list_snapshots, read_history, read_manifest, save_config, tell_snapshot

if TYPE_CHECKING:
    from penstock.engine.build import Parts
    from penstock.store import Manifest

#: Says in the history's event of the change where the run was and where it went on from.
MARK = "rolled_back"


class RolledBack(Exception):
    """All ranks have agreed to go on from the run's newest snapshot, which is that of an older step."""


@dataclass(frozen=True)
class Way:
    """From which step back to which snapshot's step, why, and the samples that were read since the fault began."""

    since: int
    here: int
    to: int
    id: str
    first: int
    last: int
    why: str
    kind: str

    @property
    def text(self) -> str:
        """As it is told."""
        return f"back from step {self.here} to the snapshot of step {self.to}, {self.why}; samples {self.first} to {self.last} are left out"


def roll_back(parts: Parts, command: Command) -> Answer:
    """Go back as an alert's policy says (`requests/obey.py`); raises `RolledBack` on all ranks, or `UserError` on all where it cannot be.

    Returns where the run stops instead, as it went back there often enough.
    """
    came = go_back(parts, int(command.arguments["since"]), f"for alert {command.arguments.get('alert', '')}", command)
    parts.stop.requested = True
    return Answer("done", came)


def from_bad_step(parts: Parts, bad: BadStep) -> bool:
    """Go back because of a step that cannot be applied, if the policy says so; False where it does not, or cannot. All ranks must call it."""
    if parts.judge.policy.get(bad.kind) != "roll_back":
        return False
    try:
        came = go_back(parts, parts.progress.step + 1, str(bad), kind=bad.kind)
    except UserError as error:
        came = f"could not go back: {error}"
    parts.journal.warn(came)
    parts.saving.tell_history("note", came, parts.progress.step)
    return False


def go_back(parts: Parts, since: int, why: str, command: Command | None = None, kind: str = "") -> str:
    """Go back to before step `since` began a fault; raises `RolledBack` or `UserError`. Returns why the run should rather stop.

    `kind` is that of an alert which nobody has told yet.
    """
    parts.saving.settle(parts)
    told: dict[str, object] = {}
    if parts.world.is_lead:
        try:
            told = {"way": asdict(_way(parts, since, why, kind))}
        except UserError as error:
            told = {"refused": str(error)}
    told = json.loads(parts.world.share(json.dumps(told)))
    if "refused" in told:
        raise UserError(str(told["refused"]))
    way = Way(**told["way"])  # type: ignore[arg-type]
    times = _times(parts, way)
    if max(parts.world.gather_numbers(times, "roll back")) >= parts.config.alerts.most:
        return (
            f"the run went back to step {way.to} {parts.config.alerts.most} times (alerts.most), and it came again, {way.why}: it is not the data; "
            f"the run stops; resume it from step {way.to} with a lower optim.lr"
        )
    parts.torn, parts.peers = True, Peers()  # from here on nobody is to go on with what is in memory
    _commit(parts, way, command)
    raise RolledBack(way.text)


def _way(parts: Parts, since: int, why: str, kind: str) -> Way:
    """On the lead: where to go back to, and what to leave out; raises `UserError`."""
    here, since = parts.progress.step, max(1, since)
    end = max(here, since)
    manifest = _good(parts, since)
    if parts.progress.since >= since:
        raise UserError(f"batch.global or model.context changed after step {parts.progress.since}, within what would be left out")
    first, last = int(parts.plan.sample_ids(since - 1)[0]), int(parts.plan.sample_ids(end - 1)[-1])
    return Way(since, here, manifest.step, manifest.id, first, last, why, kind)


def _good(parts: Parts, since: int) -> Manifest:
    """The newest whole snapshot from before a step."""
    for snapshot in reversed(list_snapshots(parts.run.folder)):
        if snapshot.step < since:
            try:
                return read_manifest(snapshot)
            except Damaged:
                continue
    raise UserError(f"there is no snapshot from before step {since}, when it began; set snapshot.every, and snapshot.keep to more")


def _times(parts: Parts, way: Way) -> int:
    """On the lead: how often the run went back to the same snapshot before."""
    if not parts.world.is_lead:
        return 0
    return sum(event.data.get(MARK, {}).get("id") == way.id for event in read_history(parts.run.folder).events)


def _commit(parts: Parts, way: Way, command: Command | None) -> None:
    """On the lead: make the snapshot the newest, and write down what is left out; raises `UserError` on all ranks if the disk refuses."""
    refused, before = "", parts.config.data.skip
    if parts.world.is_lead:
        skip = parse_skip(before).plus(way.first, way.last).text
        try:
            # Whoever is killed between two of these leaves a run that goes on from the snapshot, at first with all samples (which were not read as of
            # it), then without some: the history is the last to tell of it, so that it tells nothing that is not so.
            tell_snapshot(parts.run.path, _good(parts, way.since), "taken up again")
            save_config(parts.run, with_values(parts.config, {"data.skip": skip}))
            done = {"settings": {"data.skip": [before, skip]}, MARK: asdict(way), "command": "roll_back"}
            append_event(parts.run.path, "change", way.text, way.to, **done)
        except (UserError, OSError) as error:
            refused = str(error)
            with suppress(UserError, OSError):
                save_config(parts.run, parts.config)
    if parts.world.any(bool(refused), "roll back"):
        raise UserError(refused or "going back could not be written to the run's folder")
    parts.journal.event(way.here, "roll_back", way.text)
    parts.journal.say(f"step {way.here}: {way.text}")
    if parts.world.is_lead and command is not None:
        answer(parts.run.path, command.name, Answer("done", way.text, way.here, told=True))
