"""Holding out text for validation: by document or by tail, independent of any seed.

`document`: a document is held out if its identity hash lies below `validation` of the hash range; where chance would leave a split empty,
the document with the smallest (largest) hash is put into it. `tail`: the last share of the text by characters, beginning at character
`int((1 - validation) * n)`, as nanoGPT cuts its corpora. `auto`: by document, or by tail where there is one document only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from penstock.config import DataSection, UserError
from penstock.data.documents import Piece

SPLITS = ("train", "validation")
TRAIN, VALIDATION = 0, 1
HASH_RANGE = 1 << 64


@dataclass(frozen=True)
class Split:
    """Documents whose identity is below `threshold`, or characters from `cut` on, are held out; the other is None."""

    kind: str
    threshold: int | None = None
    cut: int | None = None

    def shifted(self, characters: int) -> Split:
        """The same split as seen from `characters` further into the text."""
        return self if self.cut is None else replace(self, cut=self.cut - characters)

    def route(self, pieces: Iterable[Piece]) -> Iterator[tuple[int, Piece]]:
        """Yield (TRAIN or VALIDATION, piece); a piece that the cut goes through comes in two."""
        if self.threshold is not None:
            yield from ((VALIDATION if piece.identity < self.threshold else TRAIN, piece) for piece in pieces)
            return
        assert self.cut is not None
        seen = 0
        for piece in pieces:
            head = self.cut - seen
            seen += len(piece.text)
            if 0 < head < len(piece.text):
                yield TRAIN, replace(piece, text=piece.text[:head], last=False)
                yield VALIDATION, replace(piece, text=piece.text[head:], first=False)
            else:
                yield (TRAIN if head > 0 else VALIDATION), piece


#: Everything on the validation side: for text that is only scored.
HELD_OUT = Split("document", threshold=HASH_RANGE)


def choose_split(data: DataSection, documents: int, characters: int, lowest: int, highest: int) -> Split:
    """The split of a corpus with so many documents and characters, whose identities go from `lowest` to `highest`.

    Raises `UserError` where it cannot be split: a single character, or equal documents to be split by document.
    """
    if data.split == "tail" or (data.split == "auto" and documents == 1):
        if characters < 2:
            raise UserError(f"data.path = {data.path!r} holds a single character, which cannot be split; give more text")
        return Split("tail", cut=min(max(1, int((1 - data.validation) * characters)), characters - 1))
    if lowest == highest:
        raise UserError(
            f"data.path = {data.path!r} holds {'one document' if documents == 1 else f'{documents} equal documents'}, which data.split = "
            f"{data.split!r} cannot split by document; set data.split = 'tail', or give more documents"
        )
    threshold = int(data.validation * HASH_RANGE)
    return Split("document", threshold=min(max(threshold, lowest + 1), highest))
