"""A chunk: the content of a cell of a tensor, known by its digest, and where its payload lies.

The digest is the first 20 bytes of BLAKE3 over the dtype's name, a zero byte, and the numbers in C order, little-endian. Equal content has one
digest and is stored once, whichever rank, tensor or step it belongs to. It is of the content, not of the payload: however a payload was
encoded, whoever decodes it can tell that it is what was meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import blake3

from penstock.config import UserError

#: Bytes of a number, by dtype as manifests name it (torch's name without `torch.`).
ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
    "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
#: Most bytes of a cell's content, and of its payload: a file that claims more is refused before anything is allocated.
MAX_CONTENT, MAX_PAYLOAD = 1 << 26, 1 << 27
#: Longest chain of increments that is followed.
MAX_CHAIN = 64

DIGEST = re.compile(r"[0-9a-f]{40}")
_PACK = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\.pack")
_CODEC = re.compile(r"[a-z0-9][a-z0-9._+-]{0,39}")
_TYPES = {(str, int, int, str, base, str, int) for base in (str, type(None))}


class Damaged(UserError):
    """A file of the store is missing, cut off, changed, or was never one of ours; the message names it, and so does `file`, if it is one."""

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file


@lru_cache(4096)
def _is_pack(name: str) -> bool:
    return _PACK.fullmatch(name) is not None


@lru_cache(64)
def _is_codec(name: str) -> bool:
    return _CODEC.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """Where a chunk's payload lies, how it is encoded, and what it decodes to."""

    pack: str  #: name of the pack, without folder
    offset: int  #: of the payload in the pack, bytes
    size: int  #: of the payload, bytes
    codec: str
    base: str | None  #: digest of the chunk it is an increment of
    dtype: str
    count: int  #: numbers in the content

    @property
    def row(self) -> tuple[Any, ...]:
        """As files have it beside the pack: offset, size, codec, base, dtype, count."""
        return self.offset, self.size, self.codec, self.base, self.dtype, self.count

    @property
    def content_bytes(self) -> int:
        """Bytes of the decoded content."""
        return self.count * ITEM_BYTES[self.dtype]

    def check(self) -> ChunkEntry:
        """This entry, if it may be one; raises ValueError that says what is wrong with it."""
        pack, offset, size, codec, base, dtype, count = self.pack, self.offset, self.size, self.codec, self.base, self.dtype, self.count
        if (type(pack), type(offset), type(size), type(codec), type(base), type(dtype), type(count)) not in _TYPES:
            raise ValueError(f"{(pack, *self.row)!r} has a value of another type")
        if not _is_pack(pack):
            raise ValueError(f"{pack!r} is not the name of a pack")
        if not _is_codec(codec) or (base is not None and not DIGEST.fullmatch(base)):
            raise ValueError(f"codec {codec!r} or base {base!r} is not one")
        if dtype not in ITEM_BYTES:
            raise ValueError(f"there is no dtype {dtype!r}")
        if offset < 0 or not 0 <= size <= MAX_PAYLOAD or not 0 <= count * ITEM_BYTES[dtype] <= MAX_CONTENT:
            raise ValueError(f"{size} bytes at {offset} for {count} numbers is more than a chunk may have")
        return self


def chunk_digest(dtype: str, content: bytes | memoryview) -> str:
    """Digest of a cell's content, 40 hexadecimal digits; `content` is its numbers' bytes in C order."""
    hasher = blake3.blake3(dtype.encode() + b"\0")
    hasher.update(content)
    return hasher.hexdigest(length=20)
