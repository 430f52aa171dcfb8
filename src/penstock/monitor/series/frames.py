"""Frames of a rank's row log: what a record is made of, and how records are found again behind damaged bytes.

    magic  4 bytes | payload bytes  u32 | digest  u64 | number  u64 | step  i64 | time  f64 | kind  u32 | names  u32 | payload …

All little-endian, so that a row's float64 lie on 8 bytes. The digest (XXH3, 64 bits) is of everything behind it. A record of kind `ABOUT` holds JSON:
who writes, and the names of the columns; one of kind `ROW` holds the values under the names whose digest (32 bits) is its field `names`. `number`
counts a rank's rows, lost ones too, so that a gap tells how many are missing. Cost: 48 bytes a row and 1 µs for the digest of 300 values. When not to
use it: for large payloads of which only a part is read; their digest would need all of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64_intdigest

MAGIC = b"PRW1"
HEADER = struct.Struct("<4sIQQqdII")
#: Bytes of a record that its digest does not cover, and the digest's place.
UNCOVERED, DIGEST = 16, struct.Struct("<Q")
ABOUT, ROW = 1, 2
#: Longest payload; a length beyond it is damage.
MOST_BYTES = 1 << 22

_FIELDS = np.dtype(
    [("magic", "S4"), ("length", "<u4"), ("digest", "<u8"), ("number", "<u8"), ("step", "<i8"), ("time", "<f8"), ("kind", "<u4"), ("names", "<u4")]
)


@dataclass(frozen=True)
class Frame:
    """A record's header and where it lies in a buffer."""

    start: int
    length: int
    kind: int
    names: int

    @property
    def payload(self) -> int:
        """Where its payload begins."""
        return self.start + HEADER.size

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.start + HEADER.size + self.length


def fill(buffer: bytearray, number: int, step: int, time: float, kind: int, names: int) -> None:
    """Write the header of a record into the buffer that holds its payload already."""
    HEADER.pack_into(buffer, 0, MAGIC, len(buffer) - HEADER.size, 0, number, step, time, kind, names)
    DIGEST.pack_into(buffer, 8, xxh3_64_intdigest(memoryview(buffer)[UNCOVERED:]))


def about_record(payload: bytes, names: int) -> bytes:
    """A whole record of kind `ABOUT`; the payload is filled with blanks to 8 bytes."""
    buffer = bytearray(HEADER.size) + payload + b" " * (-len(payload) % 8)
    fill(buffer, 0, 0, 0.0, ABOUT, names)
    return bytes(buffer)


def names_digest(names: list[str]) -> int:
    """32 bits that tell a list of names from others."""
    return xxh3_64_intdigest("\n".join(names).encode()) & 0xFFFF_FFFF


def frame_at(data: memoryview, start: int) -> Frame | None:
    """The record that begins there, as its header has it; None if none does."""
    if start + HEADER.size > len(data):
        return None
    magic, length, _, _, _, _, kind, names = HEADER.unpack_from(data, start)
    if magic != MAGIC or length > MOST_BYTES or length % 8 or kind not in (ABOUT, ROW):
        return None
    return Frame(start, length, kind, names)


def is_whole(data: memoryview, frame: Frame) -> bool:
    """Whether a record is all there and is what was written."""
    return frame.end <= len(data) and _matches(data, frame.start, frame.end)


def next_frame(data: memoryview, start: int) -> Frame | None:
    """The first whole record at or behind a place."""
    return next((frame for frame in _candidates(data, start) if is_whole(data, frame)), None)


def cut_off(data: memoryview, start: int) -> int:
    """The first place at or behind `start` where a record may begin that goes on behind the data."""
    found = next((frame.start for frame in _candidates(data, start) if frame.end > len(data)), len(data))
    return max(start, min(found, len(data) - HEADER.size + 1))


def _candidates(data: memoryview, start: int) -> Iterator[Frame]:
    content = data.obj
    assert isinstance(content, bytes)
    while (start := content.find(MAGIC, start)) >= 0:
        if frame := frame_at(data, start):
            yield frame
        start += 1


def whole_rows(data: memoryview, first: Frame) -> int:
    """How many whole rows of one length and under the same names follow each other from `first`, a whole one, on."""
    stride = HEADER.size + first.length
    heads = _heads(data, first, (len(data) - first.start) // stride)
    alike = (heads["magic"] == MAGIC) & (heads["length"] == first.length) & (heads["kind"] == ROW) & (heads["names"] == first.names)
    most = len(alike) if alike.all() else int(np.argmin(alike))
    starts = range(first.start + stride, first.start + most * stride, stride)
    return next((i for i, start in enumerate(starts, 1) if not _matches(data, start, start + stride)), most)


def rows_at(data: memoryview, first: Frame, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Headers of so many rows alike (a structured array), and copies of their values, float64 [rows, columns]."""
    heads = _heads(data, first, count)
    values = np.ndarray((count, first.length // 8), "<f8", data, first.payload, (HEADER.size + first.length, 8))
    return heads.copy(), np.array(values)


def _heads(data: memoryview, first: Frame, count: int) -> np.ndarray:
    return np.ndarray((count,), _FIELDS, data, first.start, (HEADER.size + first.length,))


def _matches(data: memoryview, start: int, end: int) -> bool:
    return DIGEST.unpack_from(data, start + 8)[0] == xxh3_64_intdigest(data[start + UNCOVERED : end])
