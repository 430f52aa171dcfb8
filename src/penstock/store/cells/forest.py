"""The chunks of many manifests as trees of increments, so that each is read and decoded once, its base before it.

A chunk may lie in several packs, encoded in several ways, as snapshots were written; what is held against its digest is each way that a manifest
names. Walking down a tree keeps the contents on its way in memory: at most as many cells as a chain is long. A chunk that cannot be read, or is not
what its digest says, takes with it those that are increments of it.

Cost: some 300 bytes of memory a chunk, and one read and decoding of each.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from penstock.store.cells.cell_writer import digest_of
from penstock.store.cells.chunks import ChunkEntry, Damaged
from penstock.store.cells.packs import pack_file, read_chunk
from penstock.store.codec import CodecError, decode
from penstock.store.places.folder import Folder

_Key = tuple[str, ChunkEntry, int]
NO_BASE = -1


class Forest:
    """Chunks by number; `add` gives those of a manifest, `check` reads them."""

    def __init__(self) -> None:
        self.chunks: list[_Key] = []  #: digest, entry, and the number of the base
        self._numbers: dict[_Key, int] = {}

    def add(self, chunks: dict[str, ChunkEntry]) -> array[int]:
        """The numbers of a manifest's chunks."""
        numbers: dict[str, int] = {}
        for digest in chunks:
            chain = [digest]
            while (base := chunks[chain[-1]].base) is not None and chain[-1] not in numbers:
                chain.append(base)
            for link in reversed(chain):
                if link not in numbers:
                    entry = chunks[link]
                    numbers[link] = self._number((link, entry, NO_BASE if entry.base is None else numbers[entry.base]))
        return array("q", numbers.values())

    def check(self, folder: Folder, only: Iterable[int] | None = None) -> dict[int, Damaged]:
        """Read and decode chunks (None: all), and what they are increments of; returns what is wrong with those that do not load."""
        wanted = self._with_bases(range(len(self.chunks)) if only is None else only)
        children = defaultdict(list)
        for number in sorted(wanted, key=lambda number: self.chunks[number][1].pack):
            children[self.chunks[number][2]].append(number)
        bad: dict[int, Damaged] = {}
        waiting: list[tuple[int, Tensor | Damaged | None]] = [(number, None) for number in reversed(children[NO_BASE])]
        while waiting:
            number, base = waiting.pop()
            content = base if isinstance(base, Damaged) else self._content(folder, number, base)
            if isinstance(content, Damaged):
                bad[number] = content
            waiting += [(child, content) for child in children[number]]
        return bad

    def _content(self, folder: Folder, number: int, base: Tensor | None) -> Tensor | Damaged:
        digest, entry, _ = self.chunks[number]
        try:
            return decoded(digest, entry, read_chunk(folder, digest, entry), base)
        except Damaged as error:
            return error

    def _with_bases(self, numbers: Iterable[int]) -> set[int]:
        found: set[int] = set()
        for number in numbers:
            while number != NO_BASE and number not in found:
                found.add(number)
                number = self.chunks[number][2]
        return found

    def _number(self, key: _Key) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.chunks)
            self.chunks.append(key)
        return self._numbers[key]


def decoded(digest: str, entry: ChunkEntry, payload: bytes | memoryview, base: Tensor | None) -> Tensor:
    """A chunk's content as a flat tensor, from its payload and its base's content; raises `Damaged` if that is not what its digest says."""
    where = f"chunk {digest[:12]} in {entry.pack} at {entry.offset}"
    try:
        content = decode(entry.codec, payload, getattr(torch, entry.dtype), entry.count, base)
    except CodecError as error:
        raise Damaged(f"{where}: {error}", pack_file(entry.pack)) from None
    if digest_of(content, entry.dtype) != digest:
        raise Damaged(f"{where} is not what was written: its digest differs", pack_file(entry.pack))
    return content
