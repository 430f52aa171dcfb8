"""One rank's cells of a snapshot into a pack: skip what is stored, encode the rest, append.

A snapshot in full is followed by `Increments.chain` increments of it, each against the full one and not against the one before: that would save
lossless increments 1 to 4 % of the state's bytes and bounded ones nothing (20 against 160 steps apart, AdamW in float32), but each would need all
before it. So to read a cell takes two chunks at most, errors do not add up, and few packs are needed for long.

`Lineage` is what a rank knows of the snapshots before: the content of its own cells in the last full one, and which chunks of its cells the newest
one needs. A cell whose digest is among those is not written again. Another becomes an increment if its full content is still among them, so that a
base is always a chunk that the parent needs, which no collection takes away.

With bounded error the snapshot's content is what was decoded, not what was copied: it takes the cell's place in memory, and the digest is of it.

Cost: a pass of BLAKE3 over each cell, and the codec over those that changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from penstock.store.cells.chunks import ChunkEntry, chunk_digest
from penstock.store.cells.grid import dtype_name
from penstock.store.cells.packs import PackWriter
from penstock.store.codec import encode
from penstock.store.places.folder import Folder
from penstock.store.snapshots.staging import HostCells, Share


@dataclass(frozen=True)
class Increments:
    """How snapshots are stored: so many increments of each one in full."""

    kind: Literal["off", "lossless", "bounded"] = "lossless"
    chain: int = 8


@dataclass
class Lineage:
    """What a rank knows of the snapshots that the next one follows."""

    #: Of the chunks that the newest needs, as far as this rank knows: the base of each, by digest.
    bases: dict[str, str | None] = field(default_factory=dict)
    #: The content of this rank's own cells in the last full one, and their digests; None: not in memory.
    cells: HostCells | None = None
    digests: list[str] = field(default_factory=list)
    #: Increments of it so far.
    taken: int = 0

    def forget_content(self) -> None:
        """Let the content go; the next cells are written in full, unless they are stored."""
        self.cells, self.digests = None, []

    def content(self, increments: Increments) -> HostCells | None:
        """What the next snapshot may be an increment of."""
        return self.cells if increments.kind != "off" and self.taken < increments.chain else None

    def base_of(self, place: int) -> str | None:
        """Digest of the full content of own cell number `place`, if the newest snapshot needs that."""
        digest = self.digests[place]
        return digest if self.bases.get(digest, "none") is None else None


class CellWriter:
    """Writes a rank's own cells into a new pack, one with each `next`; the outcome is there when they are through.

    Raises `UserError` or OSError when the disk refuses; then nothing is left of the pack.
    """

    def __init__(self, folder: Folder, pack: str, share: Share, cells: HostCells, before: Lineage, increments: Increments) -> None:
        self._share, self._cells, self._before, self._increments = share, cells, before, increments
        self._pack = PackWriter(folder, pack)
        self._full = before.content(increments)
        #: Digests of the own cells, in order.
        self.digests: list[str] = []
        self._work = self._write_all()

    def __next__(self) -> None:
        next(self._work)

    def __iter__(self) -> Iterator[None]:
        return self

    @property
    def chunks(self) -> dict[str, ChunkEntry]:
        """What the pack holds, by digest."""
        return self._pack.entries

    @property
    def n_bytes(self) -> int:
        """Bytes written."""
        return self._pack.size

    def lineage(self, superseded: Iterable[str]) -> Lineage:
        """What the rank knows for the next snapshot, once this one is published; of the `superseded` chunks it does not know the bases."""
        bases = self._before.bases | {digest: entry.base for digest, entry in self.chunks.items()} | dict.fromkeys(superseded)
        kept: dict[str, str | None] = {}
        for digest in self.digests:
            at: str | None = digest
            while at is not None and at not in kept:
                kept[at] = bases[at]
                at = kept[at]
        if self._full is not None:
            return Lineage(kept, self._before.cells, self._before.digests, self._before.taken + 1)
        return Lineage(kept, self._cells if self._increments.kind != "off" else None, self.digests)

    def _write_all(self) -> Iterator[None]:
        with self._pack:
            for place in range(len(self._share.cells)):
                self.digests.append(self._write(place))
                yield

    def _write(self, place: int) -> str:
        """Write one cell unless it is stored; return its digest."""
        cell = self._cells.cells[place]
        dtype = dtype_name(cell.dtype)
        digest = digest_of(cell.view(-1), dtype)
        if self._stored(digest):
            return digest
        base = self._before.base_of(place) if self._full is not None else None
        content = self._full.cells[place] if base is not None and self._full is not None else None
        bounded = content is not None and self._increments.kind == "bounded"
        encoded = encode(cell, content, "bounded" if bounded else "lossless")
        if bounded:
            cell.view(-1).copy_(encoded.content)
            digest = digest_of(encoded.content, dtype)
        if not self._stored(digest):
            self._pack.add(digest, encoded.payload, encoded.codec, base if encoded.needs_base else None, dtype, cell.numel())
        return digest

    def _stored(self, digest: str) -> bool:
        return digest in self._before.bases or digest in self._pack.entries


def digest_of(flat: Tensor, dtype: str) -> str:
    """Digest of a flat tensor in host memory."""
    return chunk_digest(dtype, memoryview(flat.view(torch.uint8).numpy()))  # type: ignore[arg-type]
