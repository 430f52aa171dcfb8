"""A step as ranks ran it: pipeline actions, phases and waits by rank, and beside them what the pipeline's plan had for them.

It comes from the files that ranks write of some steps (`monitor/series/shots.py`), of `MOST_RANKS` ranks at a time. All of it is checked, since these
files are whatever the run's folder holds. Cost: reading some tens of kB a rank. When not to use it: for how long phases took over a whole run.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.dashboard.inside.ranks import folder_of_rank
from penstock.monitor.series.rows import rank_folders
from penstock.monitor.series.shots import FILE, MOST_SPANS, PLAN

#: Ranks that are told at a time, bytes of a file that are read, and letters of a name.
MOST_RANKS, MOST_BYTES, MOST_LETTERS = 64, 4 << 20, 100
#: What reading a thing of another form than it should have raises.
UNTRUE = (AttributeError, KeyError, OverflowError, TypeError, ValueError)


def timeline_told(metrics: Path, step: int | None, first: int) -> dict[str, Any]:
    """What ranks from `first` on did in a step (None: the newest that most ranks have)."""
    all_ranks = sorted(rank_folders(metrics))
    ranks = [rank for rank in all_ranks if rank >= first][:MOST_RANKS]
    files = {rank: folder_of_rank(metrics, rank) / FILE for rank in ranks}
    kept = {rank: told for rank, file in files.items() if (told := _object(file)) is not None}
    damage = [f"{file.name} of rank {rank} is damaged and left out" for rank, file in files.items() if rank not in kept and file.exists()]
    by_step: dict[int, dict[int, dict[str, Any]]] = {}
    for rank, told in kept.items():
        shots = told.get("steps")
        for shot in map(_shot, shots if isinstance(shots, list) else []):
            if shot is not None:
                by_step.setdefault(shot["step"], {})[rank] = shot | {"host": str(told.get("host", ""))[:MOST_LETTERS]}
    most = max(map(len, by_step.values()), default=0)
    whole = [number for number, found in by_step.items() if len(found) == most]
    chosen = step if step in by_step else max(whole, default=None)
    rows = [{"rank": rank, **shot} for rank, shot in sorted(by_step.get(chosen, {}).items())] if chosen is not None else []
    steps = [{"step": number, "ranks": len(found)} for number, found in sorted(by_step.items())]
    start = min((row["start"] for row in rows), default=0.0)
    about = {"steps": steps, "step": chosen, "start": start, "seconds": max((row["end"] for row in rows), default=start) - start}
    return about | {"rows": rows, "ranks": len(all_ranks), "first": first, "plan": plan_told(metrics), "damage": damage}


def plan_told(metrics: Path) -> dict[str, Any] | None:
    """The pipeline's plan: stages, the rank of each, what each rank is to do when (in a unit of its own), and its bubble; None without one."""
    told = _object(metrics / PLAN)
    if told is None:
        return None
    with suppress(*UNTRUE):
        rank_of = [int(rank) for rank in told["rank_of"]]
        parts = [{"first": int(a), "last": int(b) - 1, "embedding": bool(c), "head": bool(d)} for a, b, c, d in told["parts"]]
        stages = [part | {"rank": rank} for part, rank in zip(parts, rank_of)]
        rows = [[span for one in row[:MOST_SPANS] if (span := _span(one))] for row in told["spans"]]
        schedule = told["schedule"]
        about = {"kind": str(schedule["kind"])[:MOST_LETTERS], "micro_batches": int(schedule["micro_batches"]), "bubble": _number(told["bubble"])}
        return about | {"step": int(told["step"]), "stages": stages, "rows": rows}
    return None


def hosts_told(metrics: Path, ranks: int) -> list[str]:
    """The host of each rank, as far as they told; empty names for others."""
    told = [_object(folder_of_rank(metrics, rank) / FILE) for rank in range(ranks)]
    return [str(one.get("host", ""))[:MOST_LETTERS] if one else "" for one in told]


def _shot(told: Any) -> dict[str, Any] | None:
    """A step of a rank, if it is one."""
    with suppress(*UNTRUE):
        spans = [span for one in told["spans"][:MOST_SPANS] if (span := _span(one))]
        number = {"step": int(told["step"]), "start": _number(told["start"]), "end": _number(told["end"])}
        return number | {"spans": spans, "left_out": int(told.get("left_out", 0))}
    return None


def _span(told: Any) -> list[Any] | None:
    """Name, start and seconds of a span, if it is one."""
    with suppress(*UNTRUE):
        name, start, seconds = told
        return [str(name)[:MOST_LETTERS], _number(start), _number(seconds)]
    return None


def _number(told: Any) -> float:
    value = float(told)
    if not math.isfinite(value):
        raise ValueError("no finite number")
    return value


def _object(file: Path) -> dict[str, Any] | None:
    """A file's JSON object; None if there is none, or it is damaged or too large."""
    with suppress(OSError, ValueError, RecursionError):
        with open(file, "rb") as opened:
            data = opened.read(MOST_BYTES + 1)
        told = json.loads(data) if len(data) <= MOST_BYTES else None
        return told if isinstance(told, dict) else None
    return None
