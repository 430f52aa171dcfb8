"""Streaming the documents of a segment as pieces of text, in bounded memory.

A text file is one document, a JSONL line one, a Parquet row one. Long documents come in pieces of about `PIECE_BYTES`, cut as spans are
(`spans.py`), so that neither a 100 GB file nor its tokens are ever held. Text is UTF-8 and nothing else: a wrong byte is an error
that names file and offset, never a replacement character that would be learned. A byte-order mark at the start of a file is dropped.

A document's identity is the XXH3 hash of its first 64 KiB: it decides which split the document is in, depends on nothing but
the text, and puts exact copies on the same side. Cost: reading, decoding, and `json.loads` for JSONL.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import xxhash

from penstock.config import UserError
from penstock.data.corpus import Source
from penstock.data.parquet import rows
from penstock.data.spans import Segment, character_cut, line_cut

PIECE_BYTES = 64 << 10
IDENTITY_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a document: `position` is its line (1-based, relative to the segment), row (0-based) or 0; `last`: it ends the document."""

    text: str
    source: int
    position: int
    identity: int
    first: bool
    last: bool


def pieces(segments: Sequence[Segment], sources: Sequence[Source], text_field: str) -> Iterator[Piece]:
    """Yield the pieces of all documents of `segments` in order; `sources[i]` belongs to `segments[i]`.

    Raises `UserError` for bytes that are not UTF-8, malformed JSONL, a missing field, and a file that is no longer as it was listed.
    """
    for segment, source in zip(segments, sources, strict=True):
        if source.kind == "text":
            yield from _text_pieces(segment, source)
        elif source.kind == "jsonl":
            yield from _row_pieces(segment, _json_texts(segment, source, text_field))
        else:
            yield from _row_pieces(segment, rows(source.path, text_field, segment.start, segment.end))


def count_lines(path: str, start: int, end: int) -> int:
    """Line feeds in bytes `start` to `end - 1` of a file."""
    count, left = 0, end - start
    with open(path, "rb") as file:
        file.seek(start)
        while left > 0 and (block := file.read(min(1 << 20, left))):
            count += block.count(b"\n")
            left -= len(block)
    return count


def _text_pieces(segment: Segment, source: Source) -> Iterator[Piece]:
    with open(source.path, "rb") as file:
        identity = xxhash.xxh3_64_intdigest(file.read(IDENTITY_BYTES))
        start = segment.start
        file.seek(start)
        if start == 0 and file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        first = start == 0
        for text, ends in _decoded(file, segment.end, source.path):
            yield Piece(text, segment.source, 0, identity, first, ends and segment.last)
            first = False


def _decoded(file: BinaryIO, end: int, path: str) -> Iterator[tuple[str, bool]]:
    """Yield (text, whether it ends the range) from the file's position to byte `end`, cut at good places."""
    offset, rest = file.tell(), b""
    while offset < end:
        block = rest + file.read(min(PIECE_BYTES - len(rest) % PIECE_BYTES, end - offset - len(rest)))
        ends = offset + len(block) >= end
        if len(block) == len(rest):
            raise UserError(f"{path} became shorter while it was read; run again once nothing writes to it")
        cut = len(block) if ends else _cut(block)
        try:
            text = block[:cut].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start, block[error.start]) from None
        yield text, ends
        offset, rest = offset + cut, block[cut:]


def _cut(block: bytes) -> int:
    """Where to cut a block: after a line, else before the last space, else at a character; never at 0."""
    half = len(block) // 2
    in_half = line_cut(block[half:], forward=False)
    if in_half:
        return half + in_half
    space = block.rfind(b" ", half)
    return space if space > 0 else character_cut(block, len(block) - 1, step=-1) or len(block)


def _row_pieces(segment: Segment, texts: Iterator[tuple[int, str | None]]) -> Iterator[Piece]:
    """Pieces of the non-empty texts of a segment's rows."""
    for position, text in texts:
        if not text:
            continue
        identity = xxhash.xxh3_64_intdigest(text[:IDENTITY_BYTES].encode("utf-8"))
        for start in range(0, len(text), PIECE_BYTES):
            end = start + PIECE_BYTES
            yield Piece(text[start:end], segment.source, position, identity, start == 0, end >= len(text))


def _json_texts(segment: Segment, source: Source, text_field: str) -> Iterator[tuple[int, str | None]]:
    """Yield (line of the segment, text) of a JSONL range; blank lines are passed over."""
    with open(source.path, "rb") as file:
        offset = segment.start
        file.seek(offset)
        line = 0
        while offset < segment.end:
            raw = file.readline()
            line += 1
            if not raw:
                raise UserError(f"{source.path} became shorter while it was read; run again once nothing writes to it")
            content = raw.removeprefix(codecs.BOM_UTF8) if offset == 0 else raw
            if not content.isspace():
                try:
                    yield line, _field(content, text_field)
                except UnicodeDecodeError as error:
                    raise _not_utf8(source.path, offset + len(raw) - len(content) + error.start, content[error.start]) from None
                except ValueError as error:
                    raise UserError(f"{source.path}, line {count_lines(source.path, 0, segment.start) + line}: {error}") from None
            offset += len(raw)


def _field(line: bytes, text_field: str) -> str:
    """The text of one JSONL line; raises `ValueError` with what is wrong and the mend."""
    text = line.decode("utf-8")
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno}); mend or remove the line") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply to be read; mend or remove the line") from None
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}, not an object; each line must be an object such as {{\"{text_field}\": \"…\"}}")
    if text_field not in record:
        names = ", ".join(map(repr, list(record)[:12])) or "none"
        raise ValueError(f"no field {text_field!r}; set data.text_field to one of its fields: {names}")
    value = record[text_field]
    if not isinstance(value, str):
        raise ValueError(f"field {text_field!r} holds {value!r:.40}, not text; mend the line or set data.text_field")
    if not _encodable(value):
        raise ValueError(f"field {text_field!r} holds half of a surrogate pair, which is no character; mend or remove the line")
    return value


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(path: str, offset: int, byte: int) -> UserError:
    return UserError(
        f"{path} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}; convert it (such as `iconv -f LATIN1 -t UTF-8`), "
        "or take it out of the corpus"
    )
