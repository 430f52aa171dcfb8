"""Schedules as torch's schedule CSV, out and in: the common language of pipeline tools.

One row a rank, one cell an action: `<stage><work><micro>`, for example `2F0`, `1I3`, `1W3`, `0B2` (torch/distributed/pipelining/schedules.py,
`_Action`). What is read beside these, and what becomes of it: empty cells, torch's waiting slots, are dropped, since when an action happens
follows from the order; `(0F7;7B3)OVERLAP_F_B`, two actions at once, becomes its parts in their order; UNSHARD, RESHARD, REDUCE_GRAD, SEND_* and
RECV_* are dropped, since whoever runs a schedule adds them again from the order of the rest.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from penstock.config import UserError
from penstock.parallel.pipeline.check import ScheduleError, check_schedule
from penstock.parallel.pipeline.schedule import Action, Schedule

_ACTION = re.compile(r"(\d+)(F|I|W|B)(\d+)")
_DROPPED = re.compile(r"\d+(UNSHARD|RESHARD|REDUCE_GRAD|SEND_F|RECV_F|SEND_B|RECV_B)\d*")
_PAIR = re.compile(r"\((.*)\)OVERLAP_F_B")


def to_csv(schedule: Schedule) -> str:
    """The schedule as torch's "compute_only" CSV text."""
    return "".join(",".join(map(str, row)) + "\n" for row in schedule.actions)


def read_csv(path: Path) -> Schedule:
    """The schedule of a CSV file; raises `UserError` if it cannot be read, `ScheduleError` if it cannot be run."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the schedule {path}: {error}") from None
    return from_csv(text, name=str(path))


def from_csv(text: str, rank_of: Sequence[int] | None = None, name: str = "schedule") -> Schedule:
    """The schedule of CSV text, checked; a stage lies where its actions are, or as `rank_of` says.

    Raises `ScheduleError` naming `name`, and the row and cell or the rank and action, for a cell that is no action, a stage on two ranks, and
    whatever `check_schedule` refuses: a missing, doubled or misplaced action, or a circle of them.
    """
    lines = list(csv.reader(io.StringIO(text)))
    while lines and not any(cell.strip() for cell in lines[-1]):
        lines.pop()
    rows, homes = [], dict(enumerate(rank_of)) if rank_of is not None else {}
    seen: dict[Action, str] = {}
    for rank, cells in enumerate(lines):
        row = []
        for number, cell in enumerate(cells, 1):
            place = f"{name}: row {rank + 1}, cell {number}"
            for action in _actions(cell.strip(), place):
                if action in seen:
                    raise ScheduleError(f"{place}: {action} is there twice, first in {seen[action]}; remove one")
                seen[action] = f"row {rank + 1}, cell {number}"
                if rank_of is None and homes.setdefault(action.stage, rank) != rank:
                    raise ScheduleError(
                        f"{place}: {action} is in the row of rank {rank}, and other actions of stage {action.stage} are in that of rank "
                        f"{homes[action.stage]}; a stage lies on one rank"
                    )
                row.append(action)
        rows.append(tuple(row))
    if not seen:
        raise ScheduleError(f"{name} has no action; each row is a rank, each cell an action like 2F0")
    missing = next((s for s in range(max(homes) + 1) if s not in homes), None)
    if missing is not None:
        raise ScheduleError(f"{name} has no action of stage {missing}, and some of stage {max(homes)}; add its actions")
    places = tuple(homes[stage] for stage in sorted(homes))
    schedule = Schedule("loaded", places, max(action.micro for action in seen) + 1, tuple(rows))
    try:
        check_schedule(schedule)
    except ScheduleError as error:
        raise ScheduleError(f"{name} (row 1 is rank 0): {error}") from None
    return schedule


def _actions(cell: str, place: str) -> list[Action]:
    """The actions of one cell: one, none, or a pair's two."""
    pair = _PAIR.fullmatch(cell)
    if pair:
        return [action for part in pair[1].split(";") for action in _actions(part.strip(), place)]
    if not cell or _DROPPED.fullmatch(cell):
        return []
    found = _ACTION.fullmatch(cell)
    if not found:
        raise ScheduleError(f"{place}: '{cell}' is no action; write stage, work (F, I, W or B) and micro-batch, like 2F0")
    return [Action(found[2], int(found[1]), int(found[3]))]  # type: ignore[arg-type]
