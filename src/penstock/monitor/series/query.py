"""Asking a run for its metrics: names by glob, since and until a step or a time, thinned to so many points; reads the store and the ranks' logs.

    series = Series(run.path / "metrics", kinds)
    for course in series.courses(series.find(["grad_norm/*"]), since=Bound(seconds=600), points=1000): …

A run that is written, a run that crashed and a copy without write permission are read alike, with or without a process that keeps the store; nothing
is written. Ranks' rows may move into the store meanwhile. What is damaged is left out and named (`damage`). Cost:
tens of milliseconds over 10⁷ points of 300 metrics in the store, plus some 3 µs a rank and row that is not stored yet; memory for `GROUP_BYTES` of
courses at a time. When not to use it: in a training process.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from penstock.config import UserError, nearest
from penstock.monitor.series.chunk import FIELDS
from penstock.monitor.series.coarse import COARSER, LEVELS, chosen
from penstock.monitor.series.columns import ColumnReader, Stored
from penstock.monitor.series.course import ROW_BYTES, SLACK, Course, Gatherer
from penstock.monitor.series.frames import HEADER
from penstock.monitor.series.gather import Gather, generations_of
from penstock.monitor.series.keeper import STORE
from penstock.monitor.series.kinds import Kinds
from penstock.monitor.series.merge import NO_END, Generation, Key, Merged, last_steps
from penstock.monitor.series.rows import parts_of, rank_folders
from penstock.monitor.series.tail import Rows, RowTail, first_about
from penstock.monitor.series.together import put_together

#: Bytes of courses in memory at once, and steps of the logs that are put together at once.
GROUP_BYTES, BATCH = 256 << 20, 256
#: Rows of a coarser level for each point asked for: fewer would move peaks by more than a point.
ROWS_A_POINT = 4


@dataclass(frozen=True)
class Bound:
    """A step, or seconds before the run's last row; neither: no bound."""

    step: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class _Window:
    first: int
    last: int
    begin: float
    end: float

    def rows(self, steps: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Which rows are in it."""
        return (steps >= self.first) & (steps <= self.last) & (times >= self.begin) & (times <= self.end)


class Series:
    """The metrics of a run as they are now; `folder` is the run's `metrics`."""

    def __init__(self, folder: Path, kinds: Kinds) -> None:
        self.folder, self.kinds = folder, kinds
        self._store = ColumnReader(folder / STORE)
        self._coarse = [ColumnReader(folder / STORE, name) for name in LEVELS]
        self._damage: dict[str, None] = {}
        #: Rows of the logs that are missing: dropped by a disk, or damaged.
        self.lost = 0

    @property
    def damage(self) -> list[str]:
        """What could not be read so far, each in words."""
        return [*dict.fromkeys(str(damage) for store in (self._store, *self._coarse) for damage in store.damage), *self._damage]

    def names(self) -> list[str]:
        """All metrics that were measured, sorted."""
        self._store.refresh()
        found = {chunk.about.names for chunk in self._store.chunks} | {rows.about.names for rows in self._logs()}
        return sorted({name for names in found for name in names})

    def find(self, globs: Sequence[str]) -> list[str]:
        """The metrics that match any of the globs; raises `UserError` naming the nearest where one matches nothing."""
        names = self.names()
        if not names:
            raise UserError(f"{self.folder} holds no metrics; they come with the run's first step")
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise UserError(f"no metric matches '{glob}'{_meant(glob, names)}; `penstock metrics RUN --names` lists all {len(names)}")
        return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]

    def courses(self, names: Sequence[str], since: Bound = Bound(), until: Bound = Bound(), points: int = 0) -> Iterator[Course]:
        """The courses of metrics, in their order; thinned to about `points` rows each if that is not 0."""
        window = self._window(since, until)
        rows = sum(chunk.head.steps for chunk in self._store.chunks) + max(map(_rows_in, rank_folders(self.folder).values()), default=0)
        most = min(rows, SLACK * points) if points else rows
        size = max(1, GROUP_BYTES // (ROW_BYTES * max(1, most)))
        for begin in range(0, len(names), size):
            yield from self._group(names[begin : begin + size], window, points)

    def last_row(self) -> tuple[int, float]:
        """Step and time (unix seconds) of the last row; (0, 0.0) if there is none."""
        self._store.refresh()
        found = [(chunk.head.last, chunk.head.time) for chunk in self._store.chunks]
        for path in rank_folders(self.folder).values():
            for generation, n, _ in reversed(parts_of(path)):
                if last := _last_row(path, generation, n):
                    found.append(last)
                    break
        if not found:
            return 0, 0.0
        key, _ = max(found)
        return key[1], max(time for last, time in found if last == key)

    def close(self) -> None:
        """Close the files."""
        for store in (self._store, *self._coarse):
            store.close()

    def _group(self, names: Sequence[str], window: _Window, points: int) -> list[Course]:
        """Courses of the store's steps and then of the logs'. Where steps went from one to the other meanwhile, the logs are read first and the store
        after them, and of the logs' steps those count that the store lacks: all that a log had lost by then is in the store. Logs are short then.
        """
        through = self._refreshed()
        gatherers = self._stored(names, window, points)
        self._add_merged(gatherers, window, self._logged(through, gatherers))
        if self._refreshed() != through:
            logged = list(self._logged(self._store.through, gatherers))
            through = self._refreshed()
            gatherers = self._stored(names, window, points)
            self._add_merged(gatherers, window, (merged for merged in logged if (merged.generation, merged.table.step) > through))
        return [gatherer.course() for gatherer in gatherers.values()]

    def _refreshed(self) -> Key:
        """The last step of the store as it is now; the coarser levels first, which may then lack steps that it has, and have none that it lacks."""
        for store in (*self._coarse, self._store):
            store.refresh()
        return self._store.through

    def _generations(self) -> list[Generation]:
        return list((self._store.generations | {generation.number: generation for generation in generations_of(self.folder)}).values())

    def _stored(self, names: Sequence[str], window: _Window, points: int) -> dict[str, Gatherer]:
        until, levels = last_steps(self._generations()), [self._store]
        rows = sum(rows for _, _, rows in _within(chosen(levels, until), window))
        while points and len(levels) <= len(self._coarse) and rows >= ROWS_A_POINT * points * COARSER ** len(levels):
            levels.append(self._coarse[len(levels) - 1])
        plan = _within(chosen(levels, until), window)
        expected = sum(rows for _, _, rows in plan)
        gatherers = {name: Gatherer(name, self.kinds.of(name), points, expected) for name in names}
        for store, chunk, _ in plan:
            self._add_stored(gatherers, window, until, store, chunk)
        return gatherers

    def _add_stored(self, gatherers: dict[str, Gatherer], window: _Window, until: dict[int, int], store: ColumnReader, chunk: Stored) -> None:
        keys = None if chunk.places.keys().isdisjoint(gatherers) else store.keys(chunk)
        if keys is None:
            return
        generations, steps, times = keys
        stands = window.rows(steps, times)
        for number, last in until.items():
            if last < NO_END:
                stands &= (generations != number) | (steps <= last)
        kept = slice(None) if stands.all() else stands
        if stands.any():
            for name in gatherers.keys() & chunk.places.keys():
                if five := store.five(chunk, name):
                    gatherers[name].add(steps[kept], times[kept], [column[kept] for column in five])

    def _logged(self, through: Key, wanted: Container[str]) -> Iterator[Merged]:
        """What the logs hold behind `through` of the metrics that are wanted."""
        gather = Gather(self.folder, through, self._generations(), wanted=wanted.__contains__)
        yield from gather.rest()
        self._note(gather)

    def _add_merged(self, gatherers: dict[str, Gatherer], window: _Window, steps: Iterable[Merged]) -> None:
        batch: list[Merged] = []
        for merged in steps:
            if batch and (len(batch) >= BATCH or _shape(merged) != _shape(batch[0])):
                self._add_batch(gatherers, window, batch)
                batch = []
            batch.append(merged)
        if batch:
            self._add_batch(gatherers, window, batch)

    def _add_batch(self, gatherers: dict[str, Gatherer], window: _Window, batch: list[Merged]) -> None:
        table = batch[0].table
        names = table.names.all[: table.values_rm.shape[1]]
        together = [self.kinds.of(name).together for name in names]
        whole = put_together(np.stack([merged.table.values_rm for merged in batch]), table.ranks, together)
        steps = np.array([merged.table.step for merged in batch])
        times = np.array([merged.table.time for merged in batch])
        inside = window.rows(steps, times)
        for i, name in enumerate(names):
            gatherers[name].add(steps[inside], times[inside], [getattr(whole, field)[inside, i] for field in FIELDS])

    def _window(self, since: Bound, until: Bound) -> _Window:
        end = self.last_row()[1] if since.seconds is not None or until.seconds is not None else 0.0
        return _Window(
            -1 if since.step is None else since.step,
            NO_END if until.step is None else until.step,
            -np.inf if since.seconds is None else end - since.seconds,
            np.inf if until.seconds is None else end - until.seconds,
        )

    def _logs(self) -> Iterator[Rows]:
        """All rows of all ranks' logs."""
        for path in rank_folders(self.folder).values():
            tail = RowTail(path)
            while found := tail.read():
                yield from found
            self._damage |= dict.fromkeys(map(str, tail.damage))

    def _note(self, gather: Gather) -> None:
        self._damage |= dict.fromkeys(map(str, gather.damage))
        self.lost = gather.lost


def _within(plan: Iterable[tuple[ColumnReader, Stored]], window: _Window) -> list[tuple[ColumnReader, Stored, int]]:
    """The chunks of a plan that may hold rows of the window, and about how many of them; a chunk begins behind the one before, or where a generation
    that began in it goes on."""
    kept, before, time = [], (0, -1), -np.inf
    for store, chunk in plan:
        last, end = chunk.head.last, chunk.head.time
        begun = [generation.after for generation in chunk.about.generations if before[0] < generation.number <= last[0]]
        lowest = min([before[1], *begun]) + 1
        if last[1] >= window.first and end >= window.begin and lowest <= window.last and time <= window.end:
            steps = (min(last[1], window.last) - max(lowest, window.first) + 1) / max(1, last[1] - lowest + 1)
            times = (min(end, window.end) - max(time, window.begin)) / (end - time) if np.isfinite(time) and end > time else 1.0
            kept.append((store, chunk, max(1, math.ceil(chunk.head.steps * min(1.0, steps, times)))))
        before, time = last, end
    return kept


def _last_row(folder: Path, generation: int, n: int) -> tuple[Key, float] | None:
    """The key and time of a part's last row."""
    tail, last = RowTail(folder, behind=(generation, n - 1)), None
    while rows := tail.read():
        last = (rows[-1].about.generation, int(rows[-1].steps[-1])), float(rows[-1].times[-1])
    return last


def _rows_in(folder: Path) -> int:
    """About how many rows a rank's log holds, by its bytes."""
    rows = 0
    for _, _, part in parts_of(folder):
        about = first_about(part)
        with suppress(OSError):
            rows += part.stat().st_size // (HEADER.size + 8 * len(about.names if about else ()))
    return rows


def _shape(merged: Merged) -> tuple[tuple[int, ...], int]:
    return merged.table.ranks, merged.table.values_rm.shape[1]


def _meant(glob: str, names: Sequence[str]) -> str:
    """What may have been meant by a glob that matches nothing: the same one of another group, if that matches something, else the nearest metric."""
    _, slash, rest = glob.partition("/")
    others = {name.partition("/")[0] for name in names if fnmatchcase(name.partition("/")[2], rest)} if slash else set()
    return nearest(glob, [f"{other}/{rest}" for other in sorted(others)]) or nearest(glob, names)
