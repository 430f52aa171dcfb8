"""What ranks did when, as a trace that ui.perfetto.dev opens: one track a rank, spans within spans.

Perfetto's own protobuf format (`perfetto/trace/trace.proto`), of which a few fields suffice; they are written here byte by byte, so no package is
needed: a field is its number and kind as a varint, then a varint or a length and bytes. Cost: some 10 µs a span, 40 bytes each. When not to use it:
for a schedule that was never run, of which `penstock schedule --trace` writes the older JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from penstock.monitor.export.spans import Span, nested

# Numbers of fields: Trace, TracePacket, TrackDescriptor, ProcessDescriptor, TrackEvent.
PACKET = 1
TIMESTAMP, SEQUENCE, EVENT, TRACK = 8, 10, 11, 60
UUID, NAME, PROCESS = 1, 2, 3
PID, PROCESS_NAME = 1, 6
TYPE, EVENT_TRACK, CATEGORY, EVENT_NAME = 9, 11, 22, 23
BEGIN, END = 1, 2


def trace(run: str, spans: Iterable[Span]) -> Iterator[bytes]:
    """The pieces of the trace's file."""
    by_rank = sorted(spans, key=lambda span: span.rank)
    for rank, members in groupby(by_rank, key=lambda span: span.rank):
        process = _number(PID, rank + 1) + _bytes(PROCESS_NAME, f"{run} rank {rank}".encode())
        track = _number(UUID, rank + 1) + _bytes(NAME, f"rank {rank}".encode()) + _bytes(PROCESS, process)
        yield _bytes(PACKET, _number(SEQUENCE, rank + 1) + _bytes(TRACK, track))
        for time, span, begins in nested(list(members)):
            event = _number(TYPE, BEGIN if begins else END) + _number(EVENT_TRACK, rank + 1)
            if begins:
                event += _bytes(CATEGORY, span.name.partition("/")[0].encode()) + _bytes(EVENT_NAME, span.name.encode())
            yield _bytes(PACKET, _number(TIMESTAMP, time) + _number(SEQUENCE, rank + 1) + _bytes(EVENT, event))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
