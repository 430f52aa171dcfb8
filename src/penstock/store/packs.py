"""Packs: many chunks' payloads in one file, written one after the other, that tells by itself what is in it.

    "PENSTOCKPACK" version(u32)   payload payload payload …   trailer(JSON)   blake3(trailer)[:16] length(u64)

A payload ends in the XXH3 of what comes before, so that any changed bit of it is noticed, also one that decodes to the same numbers, and no
decoder is given what was not encoded. The trailer lists digest, offset, size, codec, base, dtype and count of every payload, so that manifests can be held against it and an index made
again. Numbers are little-endian. A pack appears when it is whole, and is never changed: a rank writes one for each snapshot in which it has
anything new. One file instead of thousands: a disk writes it at full speed, a bucket takes it in one request.

Cost: 60 bytes before compression a chunk beside the payloads. Reading a chunk is one read of its bytes; nothing else of the pack is looked at.
"""

from __future__ import annotations

import json
import secrets
from contextlib import ExitStack
from types import TracebackType

import blake3
import xxhash

from penstock.store.chunks import DIGEST, ChunkEntry, Damaged
from penstock.store.folder import Folder, Stream

MAGIC = b"PENSTOCKPACK" + (1).to_bytes(4, "little")
SEAL = 8  # bytes of a payload's checksum
FOOT = 24  # bytes: checksum of the trailer, and its length
PACKS = "packs"
MAX_TRAILER = 1 << 30


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
        self._folder = folder
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
        entry = ChunkEntry(self.name, self.size, len(payload) + SEAL, codec, base, dtype, count).check()
        self._put(payload)
        self._put(xxhash.xxh3_64_digest(payload))
        self.entries[digest] = entry
        return entry

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._stream is not None:
            try:
                self._put(_trailer(self.entries))
            except BaseException as failure:
                self._open.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._open.__exit__(kind, error, trace)

    def _put(self, data: bytes | memoryview) -> None:
        assert self._stream is not None
        self._stream.write(data)
        self.size += len(data)


def _trailer(entries: dict[str, ChunkEntry]) -> bytes:
    rows = [[digest, *entry.row] for digest, entry in entries.items()]
    text = json.dumps(rows, separators=(",", ":")).encode()
    return text + blake3.blake3(text).digest(length=16) + len(text).to_bytes(8, "little")


def read_chunk(folder: Folder, digest: str, entry: ChunkEntry) -> memoryview:
    """A chunk's payload, as it was encoded; raises `Damaged` if the pack is missing, too short for it, or changed there."""
    file = pack_file(entry.check().pack)
    try:
        payload = folder.read(file, entry.offset, entry.size)
    except FileNotFoundError:
        raise Damaged(f"{file} in {folder.label} is missing, which holds chunk {digest[:12]}", file) from None
    except OSError as error:
        raise Damaged(f"{file} in {folder.label} cannot be read ({error.strerror}), which holds chunk {digest[:12]}", file) from None
    if len(payload) != entry.size:
        raise Damaged(f"{file} in {folder.label} is cut off: chunk {digest[:12]} should have {entry.size} bytes at {entry.offset}", file)
    content = memoryview(payload)[:-SEAL]
    if xxhash.xxh3_64_digest(content) != payload[-SEAL:]:
        raise Damaged(f"{file} in {folder.label} is damaged: chunk {digest[:12]} at {entry.offset} is not what was written there", file)
    return content


def read_pack(folder: Folder, pack: str) -> dict[str, ChunkEntry]:
    """What a pack holds, by digest, from its trailer; raises `Damaged` if that is not whole."""
    file = pack_file(pack)
    try:
        size = folder.size(file)
        head, foot = folder.read(file, 0, len(MAGIC)), folder.read(file, max(0, size - FOOT), FOOT)
        length = int.from_bytes(foot[16:], "little")
        end = size - FOOT
        if head != MAGIC:
            raise ValueError("does not begin as a pack of this version does")
        if length > min(end - len(MAGIC), MAX_TRAILER):
            raise ValueError("is cut off")
        text = folder.read(file, end - length, length)
        if blake3.blake3(text).digest(length=16) != foot[:16]:
            raise ValueError("is cut off, or its trailer has changed")
        return {_digest(row[0]): _inside(ChunkEntry(pack, *row[1:]).check(), end - length) for row in json.loads(text)}
    except FileNotFoundError:
        raise Damaged(f"{file} in {folder.label} is missing", file) from None
    except OSError as error:
        raise Damaged(f"{file} in {folder.label} cannot be read ({error.strerror})", file) from None
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise Damaged(f"{file} in {folder.label} is damaged: it {error}", file) from None


def _digest(text: object) -> str:
    if not isinstance(text, str) or not DIGEST.fullmatch(text):
        raise ValueError(f"lists {text!r} as a digest")
    return text


def _inside(entry: ChunkEntry, end: int) -> ChunkEntry:
    if entry.offset < len(MAGIC) or entry.offset + entry.size > end:
        raise ValueError(f"lists {entry.size} bytes at {entry.offset}, which it does not have")
    return entry
