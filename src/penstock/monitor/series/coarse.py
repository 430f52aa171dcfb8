"""A long course in few rows: coarser levels of the store, so that all of a run is shown without reading all of it.

    store/columns-00000.pcc    every row
    store/coarse1-00000.pcc    four rows for every 128 of one generation
    store/coarse2-00000.pcc    four rows for every 128 of the level before, and so on

Of 128 rows those stay that hold a metric's lowest and highest number, its first NaN and its last number, in the order in which they came; the last
keeps its step, the others stand at the first and at thirds of the stretch, as all metrics share the steps of a chunk. What no peak is looked for in
(zoomed in, or a metric's every value) is read from the rows themselves. A level is made of whole chunks of the one before and written after it, so a
crash leaves it behind; its owner then makes up for it when it opens the store. Cost: 3 % of the store for each level, and 0.2 µs a value when it is
made. When not to use it: for fewer rows than some thousand.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.monitor.series.chunk import FIELDS, About, pack_chunk
from penstock.monitor.series.columns import ColumnReader, ColumnWriter, Stored
from penstock.monitor.series.merge import NO_END
from penstock.monitor.series.table import ABSENT, ABSENT_BITS
from penstock.monitor.series.together import NO_RANK, Whole

#: Rows that become `PICKS`, and by how much a level is coarser than the one before.
WIDTH, PICKS = 128, 4
COARSER = WIDTH // PICKS
#: Files of the levels, the finest of them first.
LEVELS = ("coarse1", "coarse2")
#: Bytes of values, and rows, that make a chunk of a level.
CHUNK_BYTES, CHUNK_ROWS = 2 << 20, 1 << 14


@dataclass(frozen=True)
class Rows:
    """Rows of all metrics of `about`: generations and steps int64 [rows], times float64 [rows], five numbers [rows, metrics]."""

    about: About
    generations: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    whole: Whole


def coarsened(rows: Rows) -> Rows:
    """Fewer rows of the same metrics; stretches end with a generation."""
    borders = [0, *(np.flatnonzero(np.diff(rows.generations)) + 1).tolist(), len(rows.steps)]
    stretches = [(at, min(at + WIDTH, end)) for begin, end in itertools.pairwise(borders) for at in range(begin, end, WIDTH)]
    pieces = [_stretch(rows.whole, begin, end) for begin, end in stretches]
    at = np.concatenate([_places(begin, end) for begin, end in stretches])
    whole = Whole(*(np.concatenate([getattr(piece, field) for piece in pieces]) for field in FIELDS))
    return Rows(rows.about, rows.generations[at], rows.steps[at], rows.times[at], whole)


def _places(begin: int, end: int) -> np.ndarray:
    """Rows whose steps and times the rows of a stretch have."""
    return np.arange(begin, end) if end - begin <= PICKS else np.linspace(begin, end - 1, PICKS).astype(np.int64)


def _stretch(whole: Whole, begin: int, end: int) -> Whole:
    five = [getattr(whole, field)[begin:end] for field in FIELDS]
    if end - begin <= PICKS:
        return Whole(*five)
    value, low, high, *_ = five
    there = np.ascontiguousarray(value).view(np.uint64) != ABSENT_BITS
    nan = there & (np.isnan(value) | np.isnan(low) | np.isnan(high))
    last = end - begin - 1 - there[::-1].argmax(0)
    lowest, highest = np.where(there & ~nan, low, np.inf).argmin(0), np.where(there & ~nan, high, -np.inf).argmax(0)
    picks, none = np.stack([lowest, highest, nan.argmax(0)]), end - begin
    known = np.take_along_axis(there, picks, 0) & (picks != last)
    known[1] &= highest != lowest
    known[2] &= nan.any(0)
    picks = np.sort(np.where(known, picks, none), axis=0)  # those that are none come last
    picks = np.concatenate([picks, np.where(there.any(0), last, none)[None]])
    return Whole(*(_taken(column, picks, NO_RANK if field.endswith("_rank") else ABSENT) for field, column in zip(FIELDS, five)))


def _taken(column: np.ndarray, picks: np.ndarray, none: float) -> np.ndarray:
    """Rows of a column [rows, metrics] by their numbers [picks, metrics]; `none` where the number is that of no row."""
    taken = np.take_along_axis(column, np.minimum(picks, len(column) - 1), 0)
    return np.where(picks < len(column), taken, np.array(none, dtype=column.dtype))


class Coarser:
    """Writes one level, and has the next one made of it; `folder` is the store's, `names` the files of this level and those behind it."""

    def __init__(self, folder: Path, names: Sequence[str] = LEVELS) -> None:
        self._writer = ColumnWriter(folder, names[0])
        self._next = Coarser(folder, names[1:]) if names[1:] else None
        self._held: list[Rows] = []

    def catch_up(self, folder: Path, finer: str) -> None:
        """Take in what the level before has more than this one, after a crash; raises OSError."""
        if self._next:
            self._next.catch_up(folder, self._writer.name)
        reader = ColumnReader(folder, finer)
        try:
            for chunk in reader.chunks:
                if chunk.head.last > self._writer.through and (rows := rows_of(reader, chunk)):
                    self.add(rows)
        finally:
            reader.close()

    def add(self, rows: Rows) -> None:
        """Take in a chunk of the level before; raises OSError where the disk does not take this level's, with nothing lost but that chunk's place."""
        if self._held and self._held[0].about.names != rows.about.names:
            self._write()
        self._held.append(coarsened(rows))
        count = sum(len(held.steps) for held in self._held)
        if count >= CHUNK_ROWS or 8 * count * len(rows.about.names) >= CHUNK_BYTES:
            self._write()

    def close(self) -> None:
        """Close the files; what makes no chunk yet is made up for the next time."""
        self._writer.close()
        if self._next:
            self._next.close()

    def _write(self) -> None:
        held, self._held = self._held, []
        generations, steps, times = (np.concatenate([getattr(rows, name) for rows in held]) for name in ("generations", "steps", "times"))
        whole = Whole(*(np.concatenate([getattr(rows.whole, field) for rows in held]) for field in FIELDS))
        rows = Rows(held[-1].about, generations, steps, times, whole)
        self._writer.append(pack_chunk(rows.about, generations, steps, times, whole))
        if self._next:
            self._next.add(rows)


def rows_of(reader: ColumnReader, chunk: Stored) -> Rows | None:
    """A chunk's rows; None if its steps are damaged. A metric that is damaged counts as not measured."""
    keys = reader.keys(chunk)
    if keys is None:
        return None
    absent = [np.full(chunk.head.steps, none, kind) for none, kind in [(ABSENT, "<f8")] * 3 + [(NO_RANK, "<i4")] * 2]
    fives = [reader.five(chunk, name) or absent for name in chunk.about.names]
    return Rows(chunk.about, *keys, Whole(*(np.stack(columns, axis=1) for columns in zip(*fives))))


def chosen(levels: Sequence[ColumnReader], until: dict[int, int]) -> list[tuple[ColumnReader, Stored]]:
    """The chunks that tell a store's whole course in as few rows as the levels, the finest first, allow, in their order.

    `until` is the last step of each generation that stands: a chunk of a coarser level that a border of those goes through is left to finer ones, as
    its rows may be of steps on either side.
    """
    borders = [(generation, last) for generation, last in until.items() if last < NO_END]
    plan = [(levels[0], chunk) for chunk in levels[0].chunks]
    for reader in levels[1:]:
        coarser: list[tuple[ColumnReader, Stored]] = []
        finer = iter([*plan, None])
        entry = next(finer)
        for chunk in reader.chunks:
            keys = reader.keys(chunk)
            if keys is None or any((int(keys[0][0]), int(keys[1][0])) <= border < chunk.head.last for border in borders):
                continue
            while entry and entry[1].head.last < (int(keys[0][0]), int(keys[1][0])):
                coarser.append(entry)
                entry = next(finer)
            while entry and entry[1].head.last <= chunk.head.last:
                entry = next(finer)
            coarser.append((reader, chunk))
        while entry:
            coarser.append(entry)
            entry = next(finer)
        plan = coarser
    return plan
