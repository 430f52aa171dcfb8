"""Ranks × time: the grid that the run's monitor keeps, or what the ranks' logs still hold of it, as numbers for a heat-map.

Numbers are base64 of little-endian columns, row by row: of 256 rows × 512 buckets they are some 1.5 MB, a fifth of what they would be as words. Above
`MOST_ROWS` ranks so many neighbours share a row that there are no more, which shows the highest of them, so that no slow one is averaged away. Cost:
some ms. When not to use it: for one rank's values of a step, which its log has.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.config import UserError
from penstock.dashboard.opened import Metrics
from penstock.dashboard.plain import Refusal
from penstock.monitor.series import Grid, grid_of_logs, read_grid
from penstock.monitor.series.rows import parts_of, rank_folders

#: Rows of a picture at most.
MOST_ROWS = 256
#: Bytes of logs that are read for a grid where there is none, and seconds for which it counts.
MOST_LOG_BYTES, LOGS_S = 64 << 20, 30.0


@dataclass(frozen=True)
class Known:
    """A run's grid, where it comes from (`monitor`, `logs` or `none`), and what is wrong with it."""

    grid: Grid
    source: str
    damage: tuple[str, ...]


def known_grid(found: Metrics) -> Known:
    """The grid of a run."""
    damage: tuple[str, ...] = ()
    try:
        if grid := found.keep("grid", lambda: read_grid(found.folder)):
            return Known(grid, "monitor", ())
    except UserError as error:
        damage = (str(error),)
    size = sum(part.stat().st_size for folder in rank_folders(found.folder).values() for _, _, part in parts_of(folder) if part.exists())
    if size > MOST_LOG_BYTES:
        told = f"the ranks' logs hold {size >> 20} MB, more than are read for a picture ({MOST_LOG_BYTES >> 20} MB)"
        return Known(Grid(), "none", (*damage, told))
    grid = found.keep("grid of logs", lambda: grid_of_logs(found.folder), LOGS_S)
    return Known(grid, "logs" if grid.names else "none", damage)


def ranks_told(found: Metrics, name: str) -> dict[str, Any]:
    """A metric of every rank over time (empty: the first that there is); raises `Refusal` for one that the grid does not have."""
    known = known_grid(found)
    grid = known.grid
    about = {"names": grid.names, "source": known.source, "damage": list(known.damage), "through": max(0, grid.through[1]), "ranks_of": grid.ranks_of}
    if not name and not grid.names:
        return about | dict.fromkeys(("name", "unit", "meaning", "mean", "most", "there"), "") | {"ranks": 0, "per_row": 1, "width": 1, "buckets": []}
    name = name or grid.names[0]
    if name not in grid.names:
        raise Refusal(404, f"no rank has kept {name!r} over time; there are {', '.join(grid.names) or 'none'}")
    kind, per_row = found.series.kinds.of(name), -(-grid.ranks // MOST_ROWS)
    mean, most, there = _rows(grid, name, per_row)
    first, last = grid.steps
    buckets = [[int(a), int(b)] for a, b in zip(first, last)][: mean.shape[1]]
    about |= {"name": name, "unit": kind.unit, "meaning": kind.meaning, "ranks": grid.ranks, "per_row": per_row, "width": grid.width}
    return about | {"buckets": buckets, "mean": _text(mean, "<f4"), "most": _text(most, "<f4"), "there": _text(there, "u1")}


def newest(grid: Grid, name: str) -> tuple[list[float | None], int]:
    """A metric's mean of each rank in the newest steps that there are, and the last of these; nothing if it was never measured."""
    if name not in grid.names:
        return [], 0
    cells = grid.of(name)
    measured = np.flatnonzero(cells.count.any(1))
    if not len(measured):
        return [], 0
    mean, count, bucket = cells.mean[measured[-1]], cells.count[measured[-1]], int(measured[-1])
    if len(measured) > 1 and count.max() < grid.width:  # the newest bucket has few steps yet
        before = measured[-2]
        mean, count = np.where(count > 0, mean, cells.mean[before]), np.maximum(count, cells.count[before])
    return [float(value) if n else None for value, n in zip(mean[: grid.ranks_of], count)], int(grid.last[bucket])


def _rows(grid: Grid, name: str, per_row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, maximum, and whether there is any [rows, buckets], without empty buckets at the end."""
    cells = grid.of(name)
    used = np.flatnonzero(grid.last)
    n, spare = (int(used[-1]) + 1 if len(used) else 0), -grid.ranks % per_row
    mean, most, count = (np.pad(part[:n], ((0, 0), (0, spare))).reshape(n, -1, per_row) for part in cells.parts)
    there = count > 0
    with np.errstate(all="ignore"):
        means, highest = (np.where(there, part, -np.inf).max(2) for part in (mean, most))
    any_there = np.asarray(there.any(2))
    return np.where(any_there, means, 0.0).T, np.where(any_there, highest, 0.0).T, any_there.T


def _text(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(kind)).tobytes()).decode()


def folder_of_rank(metrics: Path, rank: int) -> Path:
    """A rank's folder below the run's `metrics`."""
    return metrics / f"rank-{rank:05d}"
