"""The file of a run's grid (`grid.py`): written whole by the run's monitor, read by whoever looks.

    RUN/metrics/ranks.grid    magic "PRG1" | bytes of front u32 | bytes of body u64 | digest u64 | front (JSON) | body (Zstandard)

The digest (XXH3, 64 bits) is of front and body. The front names metrics, sizes and positions; the body holds `last` int64 [buckets], then mean and
maximum float32 and count uint32 [buckets, metrics, ranks]. It is written beside and renamed, so it is never seen in part. Cost: for 1,000 ranks and
12 metrics 0.1 s and some MB a writing. When not to use it: to keep more than can be drawn.
"""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from xxhash import xxh3_64_intdigest

from penstock.config import UserError
from penstock.monitor.series.grid import BUCKETS, MOST_RANKS, Cells, Grid

FILE = "ranks.grid"
MAGIC, HEAD = b"PRG1", struct.Struct("<4sIQQ")
KINDS = ("<f4", "<f4", "<u4")
#: Bytes of a file, and of the cells in it, that are believed.
MOST_BYTES, MOST_CELL_BYTES = 1 << 28, 1 << 29
#: Seconds between two writings, and how much longer than one takes they are apart at least: a writing costs a hundredth of a core at most.
EVERY_S, APART = 3.0, 100.0


def write_grid(grid: Grid, folder: Path) -> None:
    """Replace the grid's file below a run's `metrics`; raises OSError where the disk does not take it."""
    n = len(grid.last)
    place = {"width": grid.width, "first": grid.first, "through": grid.through, "ranks_of": grid.ranks_of}
    front = place | {"format": 1, "buckets": n, "ranks": grid.ranks, "metrics": grid.names}
    parts = [grid.last.astype("<i8"), *(part[:n].astype(kind) for part, kind in zip(grid.cells.parts, KINDS))]
    told, body = json.dumps(front).encode(), zstandard.ZstdCompressor(level=1).compress(b"".join(part.tobytes() for part in parts))
    partial = folder / f"{FILE}.partial"
    with open(partial, "wb") as file:
        file.write(HEAD.pack(MAGIC, len(told), len(body), xxh3_64_intdigest(told + body)) + told + body)
    os.replace(partial, folder / FILE)


def read_grid(folder: Path) -> Grid | None:
    """The grid below a run's `metrics`; None if there is none. Raises `UserError` naming a damaged file."""
    file = folder / FILE
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        return _parsed(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, struct.error, zstandard.ZstdError) as error:
        raise UserError(f"{file} is damaged and left out ({error}); it is made anew while the run trains") from None


def _parsed(data: bytes) -> Grid:
    magic, front_bytes, body_bytes, digest = HEAD.unpack_from(data)
    rest = data[HEAD.size :]
    if magic != MAGIC or len(rest) != front_bytes + body_bytes or xxh3_64_intdigest(rest) != digest:
        raise ValueError("its digest is another")
    front: dict[str, Any] = json.loads(rest[:front_bytes])
    shape = int(front["buckets"]), len(front["metrics"]), int(front["ranks"])
    size = 8 * shape[0] + 12 * math.prod(shape)
    if not 0 <= shape[0] <= BUCKETS or not 0 <= shape[2] <= MOST_RANKS or size > MOST_CELL_BYTES:
        raise ValueError("its sizes are none")
    body = zstandard.ZstdDecompressor().decompress(rest[front_bytes:], max_output_size=size)
    if len(body) != size:
        raise ValueError("its cells are not all there")
    grid, (generation, step) = Grid(), front["through"]
    grid.width, grid.first, grid.ranks_of = int(front["width"]), int(front["first"]), int(front["ranks_of"])
    grid.through, grid.last = (int(generation), int(step)), np.frombuffer(body, "<i8", shape[0]).astype(np.int64)
    grid.names = [str(name) for name in front["metrics"]]
    starts = [8 * shape[0] + i * 4 * math.prod(shape) for i in range(3)]
    grid.cells = Cells(*(np.frombuffer(body, kind, math.prod(shape), at).reshape(shape).copy() for kind, at in zip(KINDS, starts)))
    return grid


class GridKeeper:
    """The grid of a run as its monitor keeps it: taken up where the file ends, written now and then. `warn` hears of a damaged file."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder = folder
        try:
            self.grid = read_grid(folder) or Grid()
        except UserError as error:
            warn(str(error))
            self.grid = Grid()
        self._written, self._next = self.grid.through, 0.0

    def write_if_due(self, now: float) -> None:
        """Write the grid if it has changed and enough time (`now`: any clock's seconds) has passed; a disk that refuses is asked again later."""
        if self.grid.through == self._written or now < self._next:
            return
        began = time.perf_counter()
        with suppress(OSError):
            write_grid(self.grid, self._folder)
            self._written = self.grid.through
        self._next = now + max(EVERY_S, APART * (time.perf_counter() - began))
