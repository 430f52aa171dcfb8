"""One fault, one alert: findings of all detectors and events of the run are put together by time, rank and cause.

    a finding comes    of the same fault as an alert (kind, rank, near in steps): nothing new
                       a consequence of an alert's fault (`kinds.explains`): noted there
                       the cause of an alert that was told before: that alert becomes the cause's, what it was is noted
                       none of these: a new alert; kinds that are nearly always a consequence are held for some steps first
    a step comes       an alert whose evidence is back at what was expected for `BACK` steps is resolved; a hang at once

Of two alerts that would do the one nearer in steps takes the finding. An alert that waits, is silenced or is only a notice is written down, and
nobody is told. At most `MOST_OPEN` are open; more are counted. Cost: findings times open alerts, next to nothing. When not to use it: to find
faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from penstock.monitor.alerts.alert import Alert
from penstock.monitor.alerts.book import Book
from penstock.monitor.alerts.events import Told
from penstock.monitor.alerts.kinds import brings_about, kind_of, worse
from penstock.monitor.detect import Finding, Moved
from penstock.monitor.series.table import StepTable

#: Steps within which findings may belong to one fault, and by which a cause may seem to begin after what it brings about.
NEAR, BLUR = 30, 8
#: Steps that evidence must be back, and its share of the way that still counts as back.
BACK, SHARE = 20, 0.35
MOST_OPEN = 64
#: Longest that an alert is held where no steps come, seconds.
HOLD_S = 30.0
#: Deviations from which what moved earlier may be the cause, and is not by chance among the evidence.
FAR = 6.0

Tell = Callable[[str, Alert], None]


class Desk:
    """Keeps a run's alerts; `tell(event, alert)` is called for what people should hear: "opened", "changed" or "resolved"."""

    def __init__(self, book: Book, tell: Tell) -> None:
        self.book, self._tell = book, tell
        self.left_out = 0
        self._held: dict[str, tuple[Alert, int, float]] = {}
        self._back: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def step(self, table: StepTable, findings: Iterable[Finding]) -> None:
        """Take in a step, and what was found in it."""
        self.book.refresh()
        self._resolve_returned(table)
        self.take(findings, table.time)
        self._release(lambda step, since: table.step >= step)

    def take(self, findings: Iterable[Finding], now: float) -> None:
        """Take in what was found at `now` (unix seconds), causes before what they bring about."""
        rest = list(findings)
        for finding in sorted(rest, key=lambda one: sum(brings_about(other.kind, one.kind) for other in rest)):
            self._take(finding, now)

    def told(self, told: Told) -> None:
        """Take in what the run's history tells."""
        self.book.refresh()
        if told.finding is not None:
            self.take([told.finding], told.time)
        if told.back is not None:
            self._held = {id: held for id, held in self._held.items() if held[0].since <= told.back}
        for alert in self._open():
            past = alert.kind in told.ends or (told.back is not None and alert.since > told.back)
            if past and alert.time <= told.time + 1.0:
                self._resolve(alert, told.why)
            elif told.done and told.finding is not None and _same(alert, told.finding):
                self._resolve(alert, told.done)

    def idle(self, now: float) -> None:
        """Time passes without steps: what has been held for long is told; `now` is in unix seconds."""
        self._release(lambda step, since: now - since > HOLD_S)

    def close(self) -> None:
        """No more steps come: tell what is held."""
        self._release(lambda step, since: True)

    def _open(self) -> list[Alert]:
        return [alert for alert in self.book.alerts.values() if alert.state != "resolved"]

    def _take(self, finding: Finding, now: float) -> None:
        if any(_same(alert, finding) and alert.time >= now for alert in self.book.alerts.values()):
            return  # a monitor that was started again sees it once more
        near = [alert for alert in [*self._open(), *(held for held, _, _ in self._held.values())] if self._belongs(alert, finding)]
        if not near:
            self._begin(finding, now)
            return
        alert = min(near, key=lambda one: (not _same(one, finding), abs(one.since - finding.since)))
        self._last[alert.id] = max(finding.step, self._last.get(alert.id, 0))
        if _same(alert, finding):
            return
        after = brings_about(alert.kind, finding.kind) and finding.since >= alert.since - BLUR
        deeper = brings_about(finding.kind, alert.kind) and not after
        self._rehead(alert, finding) if deeper else self._fold(alert, finding)

    def _belongs(self, alert: Alert, finding: Finding) -> bool:
        last = self._last.get(alert.id, alert.step)
        if finding.since > last + NEAR or finding.step < alert.since - NEAR or _elsewhere(alert, finding):
            return False
        after = brings_about(alert.kind, finding.kind) and finding.since >= alert.since - BLUR
        before = brings_about(finding.kind, alert.kind) and finding.since <= alert.since + BLUR
        return _same(alert, finding) or after or before

    def _begin(self, finding: Finding, now: float) -> None:
        if len(self._open()) + len(self._held) >= MOST_OPEN:
            self.left_out += 1
            return
        kind, rank = kind_of(finding.kind), "" if finding.rank is None else f"-r{finding.rank}"
        alert = Alert(
            self._new_id(f"{finding.kind}{rank}-s{finding.since}"), finding.kind, kind.level, "open", finding.step, finding.since, now, finding.sure,
            finding.rank, finding.layer, finding.text, _cause(kind.cause, finding), kind.advice, finding.moved,
        )  # fmt: skip
        if kind.hold:
            self._held[alert.id] = alert, finding.step + kind.hold, now
        else:
            self._put("opened", alert)

    def _new_id(self, id: str) -> str:
        """An id that no alert has: after going back a run may meet a fault at the same step again."""
        again = (f"{id}-{number}" for number in range(2, 1 << 20))
        return id if id not in self.book.alerts else next(other for other in again if other not in self.book.alerts)

    def _fold(self, alert: Alert, finding: Finding) -> None:
        """Note a consequence; nobody is told again, but of one that is worse than what was told."""
        known = {one.name for one in alert.evidence}
        more = tuple(one for one in finding.moved if one.name not in known)
        rank = alert.rank if alert.rank is not None else finding.rank
        before, level = alert.level, worse(alert.level, kind_of(finding.kind).level)
        also = _noted(alert.also, f"{finding.kind}: {finding.text}")
        alert = replace(alert, level=level, rank=rank, evidence=(*alert.evidence, *more)[:8], also=also)
        if alert.id in self._held:
            self._held[alert.id] = alert, *self._held[alert.id][1:]
        elif level != before:
            self._put("changed", alert)
        else:
            self.book.put("changed", alert)

    def _rehead(self, alert: Alert, finding: Finding) -> None:
        """The cause of a known alert was found: it becomes the cause's."""
        kind, held = kind_of(finding.kind), self._held.pop(alert.id, None)
        rank = finding.rank if finding.rank is not None else alert.rank
        evidence = (*finding.moved, *(one for one in alert.evidence if one.name not in {moved.name for moved in finding.moved}))[:8]
        alert = replace(
            alert, kind=finding.kind, level=worse(alert.level, kind.level), since=min(alert.since, finding.since), sure=finding.sure,
            rank=rank, layer=finding.layer, what=finding.text, cause=_cause(kind.cause, finding), advice=kind.advice, evidence=evidence,
            also=_noted(alert.also, f"{alert.kind}: {alert.what}"),
        )  # fmt: skip
        self._put("changed" if held is None else "opened", alert)

    def _release(self, due: Callable[[int, float], bool]) -> None:
        for id, (alert, step, since) in list(self._held.items()):
            if due(step, since):
                del self._held[id]
                self._put("opened", alert)

    def _put(self, event: str, alert: Alert) -> None:
        silenced = event == "opened" and self.book.is_silenced(alert.kind, alert.time)
        self.book.put(event, replace(alert, state="silenced") if silenced else alert)
        if not silenced and alert.state != "silenced" and alert.level != "notice":
            self._tell(event, self.book.alerts[alert.id])

    def _resolve(self, alert: Alert, why: str) -> None:
        self._back.pop(alert.id, None)
        self.book.put("resolved", resolved := alert.noting(f"resolved: {why}", state="resolved"))
        if alert.state != "silenced" and alert.level != "notice":
            self._tell("resolved", resolved)

    def _resolve_returned(self, table: StepTable) -> None:
        for alert in self._open():
            if alert.kind == "hang" and table.step > alert.step:
                self._resolve(alert, f"step {table.step} came")
            elif alert.evidence and table.step > alert.step:
                self._back[alert.id] = self._back.get(alert.id, 0) + 1 if is_back(alert.evidence[0], table) else 0
                if self._back[alert.id] >= BACK:
                    self._resolve(alert, f"{alert.evidence[0].name} has been back for {BACK} steps at step {table.step}")


def is_back(moved: Moved, table: StepTable) -> bool:
    """Whether a metric is again about where it was expected."""
    values = table.of(moved.name)
    if moved.rank is not None:
        values = values[np.array(table.ranks) == moved.rank]
    finite = values[np.isfinite(values)]
    if not len(finite):
        return False
    if not np.isfinite(moved.value) or not np.isfinite(moved.expected):
        return len(finite) == len(values)
    return bool(abs(finite.mean() - moved.expected) <= SHARE * abs(moved.value - moved.expected))


def _elsewhere(alert: Alert, finding: Finding) -> bool:
    return None not in (alert.rank, finding.rank) and alert.rank != finding.rank


def _same(alert: Alert, finding: Finding) -> bool:
    """Whether a finding is of the very fault that an alert is of, or of what it noted already."""
    if _elsewhere(alert, finding):
        return False
    known = alert.kind == finding.kind or any(also.startswith(f"{finding.kind}: ") for also in alert.also)
    return known and abs(alert.since - finding.since) <= NEAR + max(0, alert.step - alert.since)


def _cause(general: str, finding: Finding) -> str:
    """The likely cause, with what moved first where that is another metric than the one that told."""
    earlier = [one for one in finding.moved[1:] if one.since < finding.moved[0].since and abs(one.deviations) >= FAR]
    return f"{general}; {earlier[0].name} had moved by step {earlier[0].since}" if earlier else general


def _noted(also: tuple[str, ...], text: str) -> tuple[str, ...]:
    return also if len(also) >= 16 or text in also else (*also, text)
