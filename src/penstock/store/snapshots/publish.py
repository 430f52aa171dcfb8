"""The lead's part of a snapshot: of what all ranks have written it makes the manifest, whose appearance is the commit.

Every rank reports the digests of its own cells and the chunks in its pack. The manifest names every tensor's cells in the grid's order, and the
closure of their chunks: what is stored already keeps its place, so no increment can come to be its own base, and what two ranks wrote at once
is taken from the first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.store.cells.cell_writer import CellWriter
from penstock.store.cells.chunks import ChunkEntry
from penstock.store.cells.grid import StatePlan, dtype_name, grid
from penstock.store.snapshots.manifest import Manifest, TensorEntry


def report(writer: CellWriter) -> dict[str, Any]:
    """What a rank tells the lead of its pack."""
    return {"digests": writer.digests, "chunks": {digest: [e.pack, *e.row] for digest, e in writer.chunks.items()}, "n_bytes": writer.n_bytes}


def make_manifest(
    step: int,
    parent: str | None,
    stored: Mapping[str, ChunkEntry],
    numbers: dict[str, Any],
    about: dict[str, Any],
    plan: StatePlan,
    reports: Sequence[dict[str, Any]],
) -> Manifest:
    """The manifest of a snapshot of which the ranks have told these reports; `stored` are the chunks of its parent."""
    digests: dict[tuple[str, int], str] = {}
    fresh: dict[str, ChunkEntry] = {}
    for rank, told in enumerate(reports):
        digests |= {(cell.name, cell.index): digest for cell, digest in zip(plan.cells_of(rank), told["digests"])}
        fresh = {digest: ChunkEntry(*row) for digest, row in told["chunks"].items()} | fresh
    tensors = {}
    for name, dtype in plan.dtypes.items():
        shape = plan.placements[name].shape
        cells = tuple(digests[name, index] for index in range(len(grid(shape, dtype.itemsize))))
        tensors[name] = TensorEntry(shape, dtype_name(dtype), cells)
    chunks = closure(digests.values(), fresh | dict(stored))
    return Manifest(step, parent, time.strftime("%Y-%m-%dT%H:%M:%S%z"), tensors, chunks, numbers, about)


def superseded(manifest: Manifest, reports: Sequence[dict[str, Any]]) -> list[str]:
    """Digests of what some rank has written and the manifest takes from elsewhere: its base may not be what that rank believes."""
    return sorted({digest for told in reports for digest, row in told["chunks"].items() if manifest.chunks[digest] != ChunkEntry(*row)})


def closure(digests: Iterable[str], stored: Mapping[str, ChunkEntry]) -> dict[str, ChunkEntry]:
    """The chunks of these digests, and every base below them."""
    found: dict[str, ChunkEntry] = {}
    for digest in digests:
        at: str | None = digest
        while at is not None and at not in found:
            found[at] = stored[at]
            at = found[at].base
    return found
