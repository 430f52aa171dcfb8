"""Where a sample of training comes from: the documents in its window, and which bytes of each.

Nothing of this is stored while training: which window a sample is follows from the seed and its number (`batches.py`), documents from the corpus's
tables, and bytes from the lengths of the tokens before. Cost: a look-up a document, and adding up the lengths of its tokens, some 10⁸ a
second. When not to use it: for tokenizers that change the text before they cut it (normalisation), only tokens can be told, no bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from penstock.data.batches import BatchPlan
from penstock.data.shards import TokenStream
from penstock.data.tokenizer import Tokenizer

#: Tokens whose lengths are added up at a time.
BLOCK = 1 << 20


@dataclass(frozen=True)
class Excerpt:
    """Part of a document in a sample: tokens `start` to `end - 1` of the document, and those bytes of its text (UTF-8) if they can be told.

    `place` is the file, with line or row; `document` its number in the corpus's training part. An end-of-document token has no bytes.
    """

    document: int
    place: str
    start: int
    end: int
    bytes: tuple[int, int] | None


@dataclass(frozen=True)
class SampleOrigin:
    """A sample: its number, the epoch, its tokens `start` to `end - 1` of the training part (the last one only as a target), and their documents."""

    sample: int
    epoch: int
    start: int
    end: int
    excerpts: tuple[Excerpt, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Origins:
    """Tells where samples come from."""

    def __init__(self, plan: BatchPlan, tokenizer: Tokenizer) -> None:
        self._plan, self._lengths = plan, tokenizer.token_bytes

    def of_step(self, step: int) -> list[SampleOrigin]:
        """The samples of global batch `step`, in order."""
        return [self.of_sample(int(sample)) for sample in self._plan.sample_ids(step)]

    def of_sample(self, sample: int) -> SampleOrigin:
        """One sample, whatever its number."""
        stream = self._plan.stream
        start = int(self._plan.starts(np.array([sample], dtype=np.int64))[0])
        end = min(start + self._plan.context + 1, len(stream))
        excerpts, at = [], start
        while at < end:
            document, first, following = stream.document_at(at)
            stop = min(end, following)
            excerpts.append(Excerpt(document, stream.place_of(document), at - first, stop - first, self._bytes(stream, first, at, stop)))
            at = stop
        return SampleOrigin(sample, sample // self._plan.windows_per_epoch, start, end, tuple(excerpts))

    def _bytes(self, stream: TokenStream, first: int, start: int, stop: int) -> tuple[int, int] | None:
        if self._lengths is None:
            return None
        before = sum(int(self._lengths[stream.read(at, min(BLOCK, start - at))].sum()) for at in range(first, start, BLOCK))
        return before, before + int(self._lengths[stream.read(start, stop - start)].sum())
