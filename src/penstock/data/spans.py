"""Cutting a corpus into spans, the units of parallel work and of resuming.

A span is a run of segments; a segment is a range of one source: bytes of a text or JSONL file, rows of a Parquet file.
Spans depend only on the corpus, never on the number of workers, so the shards made from them do not either. Each becomes
one token shard per split. There are at most about `MAX_SPANS` (open memory maps cost file descriptors), each of at
least `SPAN_BYTES`. A file is cut after a line feed, where possible one with text right before and after it, because the word
patterns of GPT-2 and its followers then split both sides as they would the whole. Row groups of Parquet files stay whole.

Cost: a read of some KiB a cut, and the footer of every Parquet file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from penstock.data.corpus import Source
from penstock.data.parquet import row_groups

SPAN_BYTES = 2 << 20
MAX_SPANS = 96
SEARCH_BYTES = 64 << 10
WHITE_SPACE = b" \t\r\n\v\f"


@dataclass(frozen=True)
class Segment:
    """Range `start:end` of source number `source`, in bytes (text, JSONL) or rows (Parquet); `last`: it ends a text."""

    source: int
    start: int
    end: int
    last: bool


@dataclass
class Span:
    """Segments that one worker handles in one go; `weight` in bytes of text."""

    segments: list[Segment]
    weight: int


@dataclass(frozen=True)
class _Chunk:
    """A whole text or JSONL file (bytes), or a row group of a Parquet file (rows); `weight` in bytes of text."""

    source: int
    start: int
    end: int
    weight: int


def plan_spans(sources: Sequence[Source], text_field: str, max_bytes: int) -> list[Span]:
    """Cut `sources`, or their first `max_bytes` bytes unless 0, into spans.

    Raises `UserError` for unreadable Parquet files and for those without a text column `text_field`.
    """
    chunks = [chunk for index, source in enumerate(sources) for chunk in _chunks(index, source, text_field)]
    if max_bytes:
        chunks = _truncated(chunks, sources, max_bytes)
    size = max(SPAN_BYTES, -(-sum(chunk.weight for chunk in chunks) // MAX_SPANS))
    spans: list[Span] = []
    for chunk in chunks:
        _place(spans, chunk, sources[chunk.source], size)
    return spans


def _chunks(index: int, source: Source, text_field: str) -> list[_Chunk]:
    if source.kind != "parquet":
        return [_Chunk(index, 0, source.size, source.size)]
    return [_Chunk(index, start, end, weight) for start, end, weight in row_groups(source.path, text_field)]


def _truncated(chunks: list[_Chunk], sources: Sequence[Source], budget: int) -> list[_Chunk]:
    """The first `budget` bytes of the chunks, the last one cut at a line end (text, JSONL) or by its share of rows."""
    kept = []
    for chunk in chunks:
        if chunk.weight <= budget:
            kept.append(chunk)
            budget -= chunk.weight
            continue
        source = sources[chunk.source]
        end = chunk.start + (chunk.end - chunk.start) * budget // chunk.weight
        if source.kind != "parquet":
            end = _cut_before(source, end)
        if end > chunk.start:
            kept.append(replace(chunk, end=end, weight=budget))
        break
    return kept


def _place(spans: list[Span], chunk: _Chunk, source: Source, size: int) -> None:
    """Append `chunk` to the last span, cutting it where it is longer than what the span has room for."""
    start = chunk.start
    while start < chunk.end:
        if not spans or spans[-1].weight >= size:
            spans.append(Span([], 0))
        span, end, weight = spans[-1], chunk.end, chunk.weight
        if source.kind != "parquet":
            room = size - span.weight
            if end - start > room + size // 4:
                end = _cut_after(source, start + room, end)
            weight = end - start
        span.segments.append(Segment(chunk.source, start, end, end == chunk.end))
        span.weight += weight
        start = end


def _cut_after(source: Source, at: int, end: int) -> int:
    """The first good place to cut a file at or after byte `at`, or `end`."""
    with open(source.path, "rb") as file:
        file.seek(at)
        window = file.read(min(SEARCH_BYTES, end - at))
        if source.kind == "jsonl":
            file.seek(at)
            return min(end, at + len(file.readline()))
    found = line_cut(window, forward=True)
    return at + (found if found else character_cut(window, 0))


def _cut_before(source: Source, at: int) -> int:
    """The last line end of a file at or before byte `at`; for text without one near, the last character boundary."""
    if source.kind == "jsonl":
        return _last_line_end(source.path, at)
    start = max(0, at - SEARCH_BYTES)
    with open(source.path, "rb") as file:
        file.seek(start)
        window = file.read(at - start + 1)
    newline = window.rfind(b"\n", 0, at - start)
    return start + (newline + 1 if newline >= 0 else character_cut(window, at - start, step=-1))


def _last_line_end(path: str, at: int) -> int:
    """Byte after the last line feed before `at`, or 0."""
    with open(path, "rb") as file:
        while at > 0:
            start = max(0, at - SEARCH_BYTES)
            file.seek(start)
            newline = file.read(at - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            at = start
    return 0


def line_cut(window: bytes, forward: bool) -> int:
    """Offset after the first (or last) line feed with text on both sides, else after the first (last) one, else 0."""
    find = window.find if forward else window.rfind
    low, high, fallback = 0, len(window) - 1, 0
    while (newline := find(b"\n", low, high)) >= 0:
        if newline and window[newline - 1] not in WHITE_SPACE and window[newline + 1] not in WHITE_SPACE:
            return newline + 1
        fallback = fallback or newline + 1
        low, high = (newline + 1, high) if forward else (low, newline)
    return fallback


def character_cut(window: bytes, at: int, step: int = 1) -> int:
    """The nearest offset from `at` on, in direction `step`, at which a UTF-8 character begins."""
    while at + (step > 0) > 0 and at < len(window) and window[at] & 0xC0 == 0x80:
        at += step
    return at
