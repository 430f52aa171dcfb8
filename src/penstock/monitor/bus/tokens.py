"""What the tokens of a step look like: how many, how varied, whether seen before, and how surprising.

    unique        share of the vocabulary that occurs
    entropy       -Σ p log p of the step's token counts, nats; text has some 5 to 8 with a vocabulary of tens of thousands, one byte repeated has 0
    surprise      -Σ p log q, nats a token, with q the counts of all steps before plus one: data of another kind than what came so far has more than
                  the run is used to, which is also the least that can be known of a batch's difficulty
    repeated      share of the sequences that this rank has read among its last `REMEMBERED`, by a checksum of their tokens
    run           longest run of one token, as a share of its sequence

Memory: one count a token of the vocabulary, `REMEMBERED` checksums. Cost: some 10 ns a token, beside the training thread. When not to use it: to find
documents that are nearly alike, which is the business of preparing data.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from penstock.data import Batch
from penstock.monitor.series.table import ABSENT

#: Sequences of which a rank remembers the checksum.
REMEMBERED = 1 << 16
#: The metrics, in the order of `TokenWatch.look`.
NAMES = (
    "data/sequences", "data/tokens_read", "data/masked", "data/unique", "data/entropy", "data/surprise", "data/repeated", "data/longest_run",
    "data/documents",
)  # fmt: skip


class TokenWatch:
    """Looks at the sequences that one rank reads, step after step."""

    def __init__(self, vocab: int, remembered: int = REMEMBERED) -> None:
        self._vocab = vocab
        self._counts = np.ones(vocab)
        self._order: deque[int] = deque(maxlen=remembered)
        self._seen: dict[int, int] = {}

    def know(self, batches: Iterable[Batch], steps: int) -> None:
        """Know what was read in `steps` steps before, the last of which read these batches, one each: a run that goes on is not surprised anew."""
        counts, n = np.zeros(self._vocab), 0
        for batch in batches:
            counts += np.bincount(batch.tokens_bt.ravel(), minlength=self._vocab)[: self._vocab]
            n += 1
            for row in batch.tokens_bt:
                self._again(row)
        self._counts += counts * (steps / max(1, n))

    def look(self, batches: Sequence[Batch]) -> np.ndarray:
        """The values of `NAMES` for a step's micro-batches."""
        tokens = [batch.tokens_bt for batch in batches]
        rows = [row for batch in tokens for row in batch]
        counts = np.bincount(np.concatenate([batch.ravel() for batch in tokens]), minlength=self._vocab)[: self._vocab]
        n = int(counts.sum())
        present = counts[counts > 0] / n
        expected = self._counts[counts > 0] / self._counts.sum()
        self._counts += counts
        masked = sum(int((batch < 0).sum()) for batch in (one.targets_bt for one in batches))
        repeated = sum(self._again(row) for row in rows)
        borders = [int((np.diff(batch, axis=1) != 0).sum()) + len(batch) for batch in (one.documents_bt for one in batches) if batch is not None]
        return np.array([
            len(rows), n, masked / n, len(present) / self._vocab, -(present * np.log(present)).sum(), -(present * np.log(expected)).sum(),
            repeated / len(rows), max(map(longest_run, tokens)), sum(borders) if borders else ABSENT,
        ])  # fmt: skip

    def _again(self, row: np.ndarray) -> bool:
        """Whether a sequence has been seen lately; it is remembered."""
        content = row.tobytes()
        mark = zlib.crc32(content) << 32 | zlib.adler32(content)
        known = mark in self._seen
        if len(self._order) == self._order.maxlen:
            oldest = self._order[0]
            self._seen[oldest] -= 1
            if not self._seen[oldest]:
                del self._seen[oldest]
        self._order.append(mark)
        self._seen[mark] = self._seen.get(mark, 0) + 1
        return known


def longest_run(tokens_bt: np.ndarray) -> float:
    """The longest run of one token in any of the sequences, as a share of their length."""
    b, t = tokens_bt.shape
    ends = np.ones((b, t), dtype=bool)
    ends[:, :-1] = tokens_bt[:, 1:] != tokens_bt[:, :-1]
    at = np.flatnonzero(ends)
    return float(np.diff(at, prepend=-1).max()) / t
