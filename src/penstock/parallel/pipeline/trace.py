"""A pipeline's timeline as a Chrome trace, which ui.perfetto.dev and chrome://tracing show, out and in.

One process 'pipeline', one thread a rank, one complete event ("ph": "X") an action, named by work, stage and micro-batch ("F 3.5") with the three as
arguments; times in microseconds (Trace Event Format, Google, 2016). What cannot be seen from events stands under "otherData": the rank of each
stage, the number of micro-batches, of steps, and of the first step. Other events of a trace are left alone, so a file may be merged with a profile's.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from penstock.config import UserError
from penstock.parallel.pipeline.check import ScheduleError, check_schedule
from penstock.parallel.pipeline.schedule import Action
from penstock.parallel.pipeline.timeline import Span, Timeline

_PID = 0
_MICRO = 1e6


def write_trace(timeline: Timeline, path: Path) -> None:
    """Write a timeline as a Chrome trace; raises `UserError` if the file cannot be written."""
    try:
        path.write_text(json.dumps(trace_of(timeline)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the trace {path}: {error}") from None


def trace_of(timeline: Timeline) -> dict[str, Any]:
    """The trace as an object for JSON; its times begin at 0."""
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": _PID, "args": {"name": "pipeline"}}]
    for rank, row in enumerate(timeline.spans):
        events.append({"ph": "M", "name": "thread_name", "pid": _PID, "tid": rank, "args": {"name": f"rank {rank}"}})
        events.append({"ph": "M", "name": "thread_sort_index", "pid": _PID, "tid": rank, "args": {"sort_index": rank}})
        for (work, stage, micro), start, end in row:
            times = {"ts": (start - timeline.start_s) * _MICRO, "dur": (end - start) * _MICRO}
            args = {"work": work, "stage": stage, "micro": micro}
            events.append({"ph": "X", "name": f"{work} {stage}.{micro}", "cat": "pipeline", "pid": _PID, "tid": rank, **times, "args": args})
    about = {
        "kind": timeline.kind,
        "rank_of": list(timeline.rank_of),
        "micro_batches": timeline.micro_batches,
        "steps": timeline.steps,
        "first_step": timeline.first_step,
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"pipeline": about}}


def read_trace(path: Path) -> Timeline:
    """The timeline of a trace that `write_trace` wrote.

    Raises `UserError`, naming the file, for one that cannot be read, is no trace of a pipeline, or lacks an action.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the trace {path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} is no trace: it is not JSON ({error})") from None
    try:
        timeline = _timeline(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no trace of a pipeline: {error} is missing or odd; `penstock schedule --trace` and runs with a pipeline write such traces"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is no trace of a pipeline: {error}") from None
    try:
        check_schedule(timeline.schedule)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None
    return timeline


def _timeline(data: dict[str, Any]) -> Timeline:
    """Raises KeyError or TypeError for what is missing, ValueError for what is out of range."""
    about = data["otherData"]["pipeline"]
    rank_of = tuple(int(rank) for rank in about["rank_of"])
    micro_batches, steps = int(about["micro_batches"]), int(about["steps"])
    first = about["first_step"]
    ranks = max(rank_of, default=-1) + 1
    if not ranks or min(rank_of) < 0 or micro_batches < 1 or steps < 1:
        raise ValueError(f"it tells of {ranks} ranks, {micro_batches} micro-batches and {steps} steps")
    rows: list[list[Span]] = [[] for _ in range(ranks)]
    for event in data["traceEvents"]:
        if event.get("ph") != "X" or event.get("cat") != "pipeline":
            continue
        span = _span(event)
        if not 0 <= event["tid"] < ranks:
            raise ValueError(f"event '{event['name']}' is of rank {event['tid']}, and there are {ranks}")
        rows[event["tid"]].append(span)
    for rank, row in enumerate(rows):
        row.sort(key=lambda span: (span.start_s, span.end_s))
        if len(row) % steps:
            raise ValueError(f"the {len(row)} actions of rank {rank} do not divide into {steps} steps")
    return Timeline(str(about["kind"]), rank_of, micro_batches, tuple(map(tuple, rows)), steps, None if first is None else int(first))


def _span(event: dict[str, Any]) -> Span:
    args = event["args"]
    start, length = float(event["ts"]), float(event["dur"])
    if not (math.isfinite(start) and math.isfinite(length) and length >= 0):
        raise ValueError(f"event '{event['name']}' has no time: ts {event['ts']}, dur {event['dur']}")
    return Span(Action(args["work"], int(args["stage"]), int(args["micro"])), start / _MICRO, (start + length) / _MICRO)
