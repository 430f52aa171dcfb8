"""Packs: many chunks' payloads in one file, written one after the other, that tells by itself what is in it.

    "PENSTOCKPACK" version(u32)   payload payload payload …   trailer(JSON)   blake3(trailer)[:16] length(u64)

The trailer lists digest, offset, size, codec, base, dtype and count of every payload, so that manifests can be held against it and an index made
again, and has the BLAKE3 of all before it, as a decoder need not notice every bit that has changed. Numbers are little-endian. A pack appears when it
is whole, and is never changed: a rank writes one for each snapshot in which it has anything new. One file instead of thousands: a disk writes it at
full speed, a bucket takes it in one request.

Cost: some 110 bytes a chunk beside the payloads. Reading a chunk is one read of its bytes; nothing else of the pack is looked at.
"""

from __future__ import annotations

import json
import secrets
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import blake3

from penstock.store.cells.chunks import DIGEST, ChunkEntry, Damaged
from penstock.store.places.folder import Folder, Stream

MAGIC = b"PENSTOCKPACK" + (1).to_bytes(4, "little")
FOOT = 24  # bytes: checksum of the trailer, and its length
PACKS = "packs"
MAX_TRAILER = 1 << 30
BLOCK = 8 << 20


def new_pack_name(step: int, rank: int) -> str:
    """A name that no other pack has, clock or no clock."""
    return f"step-{step:08d}-rank-{rank:05d}-{secrets.token_hex(4)}.pack"


def pack_file(pack: str) -> str:
    """Name of a pack's file in the run's folder."""
    return f"{PACKS}/{pack}"


class PackWriter:
    """Writes a pack; a context that leaves a whole pack, or nothing if it ends by an exception or nothing was added.

    Raises `UserError` when the disk is full or refuses.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.name = name
        #: What has been added, by digest.
        self.entries: dict[str, ChunkEntry] = {}
        #: Bytes written so far, without the trailer.
        self.size = 0
        self._folder, self._body = folder, blake3.blake3()
        self._open = ExitStack()
        self._stream: Stream | None = None

    def __enter__(self) -> PackWriter:
        return self

    def add(self, digest: str, payload: bytes | memoryview, codec: str, base: str | None, dtype: str, count: int) -> ChunkEntry:
        """Append a payload whose content has `digest`; returns its entry, that of the first if it is here already."""
        if digest in self.entries:
            return self.entries[digest]
        if self._stream is None:
            self._stream = self._open.enter_context(self._folder.create(pack_file(self.name)))
            self._put(MAGIC)
        entry = ChunkEntry(self.name, self.size, len(payload), codec, base, dtype, count).check()
        self._put(payload)
        self.entries[digest] = entry
        return entry

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._stream is not None:
            try:
                self._put(_trailer(self._body.hexdigest(), self.entries))
            except BaseException as failure:
                self._open.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._open.__exit__(kind, error, trace)

    def _put(self, data: bytes | memoryview) -> None:
        assert self._stream is not None
        self._stream.write(data)
        self._body.update(data)
        self.size += len(data)


def _trailer(body: str, entries: dict[str, ChunkEntry]) -> bytes:
    rows = [[digest, *entry.row] for digest, entry in entries.items()]
    text = json.dumps({"body": body, "chunks": rows}, separators=(",", ":")).encode()
    return text + blake3.blake3(text).digest(length=16) + len(text).to_bytes(8, "little")


def read_chunk(folder: Folder, digest: str, entry: ChunkEntry) -> bytes:
    """A chunk's payload, as it was encoded; raises `Damaged` if the pack is missing or too short for it. What it decodes to is checked later."""
    file = pack_file(entry.check().pack)
    try:
        payload = folder.read(file, entry.offset, entry.size)
    except FileNotFoundError:
        raise Damaged(f"{file} in {folder.label} is missing, which holds chunk {digest[:12]}", file) from None
    except OSError as error:
        raise Damaged(f"{file} in {folder.label} cannot be read ({error.strerror}), which holds chunk {digest[:12]}", file) from None
    if len(payload) != entry.size:
        raise Damaged(f"{file} in {folder.label} is cut off: chunk {digest[:12]} should have {entry.size} bytes at {entry.offset}", file)
    return payload


def read_pack(folder: Folder, pack: str, whole: bool = False) -> dict[str, ChunkEntry]:
    """What a pack holds, by digest, from its trailer; raises `Damaged` if that is not whole. `whole`: nor any other byte of it."""
    file = pack_file(pack)
    try:
        end, trailer = _read_trailer(folder, file)
        chunks = {_digest(row[0]): _inside(ChunkEntry(pack, *row[1:]).check(), end) for row in trailer["chunks"]}
        if whole and _body(folder, file, end) != trailer["body"]:
            raise ValueError("has changed since it was written")
    except FileNotFoundError:
        raise Damaged(f"{file} in {folder.label} is missing", file) from None
    except OSError as error:
        raise Damaged(f"{file} in {folder.label} cannot be read ({error.strerror})", file) from None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise Damaged(f"{file} in {folder.label} is damaged: it {error}", file) from None
    return chunks


def _read_trailer(folder: Folder, file: str) -> tuple[int, Any]:
    """Where a pack's payloads end, and its trailer; raises ValueError."""
    size = folder.size(file)
    head, foot = folder.read(file, 0, len(MAGIC)), folder.read(file, max(0, size - FOOT), FOOT)
    length = int.from_bytes(foot[16:], "little")
    end = size - FOOT - length
    if head != MAGIC:
        raise ValueError("does not begin as a pack of this version does")
    if end < len(MAGIC) or length > MAX_TRAILER:
        raise ValueError("is cut off")
    text = folder.read(file, end, length)
    if blake3.blake3(text).digest(length=16) != foot[:16]:
        raise ValueError("is cut off, or its trailer has changed")
    return end, json.loads(text)


def _body(folder: Folder, file: str, end: int) -> str:
    hasher = blake3.blake3()
    for start in range(0, end, BLOCK):
        hasher.update(folder.read(file, start, min(BLOCK, end - start)))
    return hasher.hexdigest()


def _digest(text: object) -> str:
    if not isinstance(text, str) or not DIGEST.fullmatch(text):
        raise ValueError(f"lists {text!r} as a digest")
    return text


def _inside(entry: ChunkEntry, end: int) -> ChunkEntry:
    if entry.offset < len(MAGIC) or entry.offset + entry.size > end:
        raise ValueError(f"lists {entry.size} bytes at {entry.offset}, which it does not have")
    return entry
