"""An alert: one fault of a run as people are told of it.

What happened, where (rank, layer), since which step, how sure that is, the likely cause with the metrics that moved first, and what to do. An alert
is open until somebody acknowledges it, or what it tells of has passed; of a silenced kind it is kept, and nobody is told. Cost: a small object. When
not to use it: for what a single detector says (`detect/finding.py`); several findings may be one fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from penstock.monitor.detect import Moved
from penstock.monitor.series.catalogue import CATALOGUE
from penstock.monitor.series.kinds import Kinds
from penstock.monitor.units import in_unit

_METRICS = Kinds(CATALOGUE)
State = Literal["open", "acknowledged", "silenced", "resolved"]
Level = Literal["notice", "warning", "critical"]


@dataclass(frozen=True)
class Alert:
    """One fault. `step`: told after; `since`: began at; `time`: unix seconds of that step; `also`: what else was found of the same fault."""

    id: str
    kind: str
    level: Level
    state: State
    step: int
    since: int
    time: float
    sure: float
    rank: int | None
    layer: int | None
    what: str
    cause: str
    advice: str
    evidence: tuple[Moved, ...] = ()
    also: tuple[str, ...] = ()
    #: What was done by itself, and who acknowledged or why it is resolved.
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Rank and layer in words; empty where it is the whole run."""
        parts = ([f"rank {self.rank}"] if self.rank is not None else []) + ([f"layer {self.layer}"] if self.layer is not None else [])
        return ", ".join(parts)

    def noting(self, note: str, **changes: Any) -> Alert:
        """The alert with a note more."""
        return replace(self, notes=(*self.notes, note), **changes)

    def as_dict(self) -> dict[str, Any]:
        """As JSON; numbers that are not finite are words, which JSON has no numbers for."""
        told = asdict(self) | {"evidence": [{name: _plain(value) for name, value in asdict(one).items()} for one in self.evidence]}
        return told | {name: list(told[name]) for name in ("also", "notes")}


def alert_of(told: Mapping[str, Any]) -> Alert:
    """An alert from what `as_dict` made; raises KeyError, TypeError or ValueError for what is none."""
    known = {field.name: told[field.name] for field in fields(Alert)}
    evidence = tuple(Moved(**one | {name: float(one[name]) for name in ("value", "expected", "deviations")}) for one in told["evidence"])
    return Alert(**known | {"evidence": evidence, "also": tuple(told["also"]), "notes": tuple(told["notes"])})


def as_text(alert: Alert) -> str:
    """The alert in some lines, for a terminal or a letter."""
    where = f" ({alert.where})" if alert.where else ""
    lines = [f"{alert.level.upper()} {alert.kind}{where} since step {alert.since}, {alert.sure:.0%} sure, {alert.state} [{alert.id}]"]
    lines += [f"  {alert.what}", f"  cause   {alert.cause}"]
    if alert.evidence:
        lines.append("  moved   " + "; ".join(moved_text(one) for one in alert.evidence[:4]))
    lines += [f"  also    {also}" for also in alert.also[:4]]
    lines.append(f"  do      {alert.advice}")
    return "\n".join(lines + [f"  note    {note}" for note in alert.notes])


def moved_text(moved: Moved) -> str:
    """One piece of evidence in words."""
    rank, unit = f" of rank {moved.rank}" if moved.rank is not None else "", _METRICS.of(moved.name).unit
    return f"{moved.name}{rank}: {in_unit(moved.value, unit)}, not {in_unit(moved.expected, unit)}, from step {moved.since}"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
