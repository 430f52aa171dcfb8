"""The first pass over a corpus: is it all UTF-8 and well-formed, and how large is it?

Errors surface here, before hours of tokenizing. The counts decide how the corpus is split, where each span lies in
the text and the file, and which characters there are. Cost: reading and decoding, some 300 MB/s a process for text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from penstock.data.corpus import Source
from penstock.data.documents import count_lines, pieces
from penstock.data.spans import Segment, Span
from penstock.data.split import HASH_RANGE

UNICODE_POINTS = 0x110000


@dataclass(frozen=True)
class Survey:
    """Counts over a span or a corpus; `lowest` and `highest` are over document identities, `alphabet` is sorted.

    `lines` counts the line feeds of the last segment, where that is JSONL.
    """

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    lowest: int = HASH_RANGE
    highest: int = -1
    lines: int = 0
    alphabet: str = ""

    def tree(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def survey_span(segments: Sequence[Segment], sources: Sequence[Source], text_field: str, report: Callable[[int], None]) -> Survey:
    """Read a span through; `report` is told of text bytes read. Raises what `documents.pieces` raises."""
    seen = np.zeros(UNICODE_POINTS, dtype=bool)
    documents = n_bytes = characters = 0
    lowest, highest = HASH_RANGE, -1
    for piece in pieces(segments, sources, text_field):
        encoded = piece.text.encode("utf-32-le")
        seen[np.frombuffer(encoded, dtype="<u4")] = True
        size = len(piece.text.encode("utf-8"))
        n_bytes += size
        characters += len(piece.text)
        documents += piece.first
        lowest, highest = min(lowest, piece.identity), max(highest, piece.identity)
        report(size)
    alphabet = np.flatnonzero(seen).astype("<u4").tobytes().decode("utf-32-le")
    last, source = segments[-1], sources[-1]
    lines = count_lines(source.path, last.start, last.end) if source.kind == "jsonl" else 0
    return Survey(documents, n_bytes, characters, lowest, highest, lines, alphabet)


def combine(surveys: Sequence[Survey]) -> Survey:
    """The counts of a whole corpus."""
    return Survey(
        documents=sum(s.documents for s in surveys),
        bytes=sum(s.bytes for s in surveys),
        characters=sum(s.characters for s in surveys),
        lowest=min(s.lowest for s in surveys),
        highest=max(s.highest for s in surveys),
        alphabet="".join(sorted(set().union(*(s.alphabet for s in surveys)))),
    )


def line_bases(spans: Sequence[Span], surveys: Sequence[Survey]) -> list[int]:
    """Lines of the file before each span's first segment; 0 where the span begins with a new file."""
    bases: list[int] = []
    for index, span in enumerate(spans):
        before = spans[index - 1].segments[-1] if index else None
        if before is None or before.source != span.segments[0].source:
            bases.append(0)
        else:
            bases.append(surveys[index - 1].lines + (bases[-1] if len(spans[index - 1].segments) == 1 else 0))
    return bases
