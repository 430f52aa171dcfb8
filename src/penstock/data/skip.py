"""Samples that a run leaves out, `data.skip = "1936-1951 4000"`, and which sample is the n-th without them.

A batch stays a pure function: of seed, step and this list. So a run that is begun anew with the list reads what a run reads that found out on its
way which samples to leave out, and resuming, replaying and any number of ranks need nothing else. Numbers are those of `penstock runs samples`;
they count windows of `model.context`. Cost: an addition a range and batch. When not to use it: to leave out files
or documents, which `data.path` decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from penstock.config import UserError


@dataclass(frozen=True)
class Skip:
    """Ranges (first, last) of sample numbers, in order, apart from each other."""

    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def text(self) -> str:
        """As the setting has it."""
        return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ranges)

    def plus(self, first: int, last: int) -> Skip:
        """With the samples from `first` to `last` too."""
        return Skip(_merged([*self.ranges, (first, last)]))

    def from_(self, begin: int) -> Skip:
        """Of sample `begin` and later ones only."""
        return Skip(tuple((max(first, begin), last) for first, last in self.ranges if last >= begin))

    def nth(self, begin: int, n: np.ndarray) -> np.ndarray:
        """The n-th sample (from 0) of those from `begin` on that are not left out, int64."""
        ids = begin + np.asarray(n, dtype=np.int64)
        for first, last in self.from_(begin).ranges:
            ids = np.where(ids >= first, ids + (last - first + 1), ids)
        return ids

    def run_before(self, sample: int) -> int:
        """How many samples directly before this one are left out."""
        return next((last - first + 1 for first, last in self.ranges if last == sample - 1), 0)


def parse_skip(text: str) -> Skip:
    """The list of a setting; raises `UserError`."""
    ranges = []
    for word in text.split():
        first, dash, last = word.partition("-")
        if not (first.isdigit() and (last.isdigit() or not dash)) or int(last or first) < int(first):
            raise UserError(f"data.skip = {text!r}: {word!r} is no range of samples; write FIRST-LAST or one number, separated by spaces")
        ranges.append((int(first), int(last or first)))
    return Skip(_merged(ranges))


def check_unread(before: str, after: str, read: int) -> None:
    """Raise `UserError` where a new list would change what was left out of the samples before number `read`, which are behind."""
    was, becomes = ({number for first, last in parse_skip(text).ranges for number in (first, last + 1) if number < read} for text in (before, after))
    if was != becomes:
        raise UserError(f"data.skip = {after!r}: samples before {read} have been read, or were left out already; keep these as in {before!r}")


def _merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return tuple(found)
