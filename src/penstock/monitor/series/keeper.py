"""Keeps a run's store: takes ranks' rows in, gives their tables to whoever watches, packs them into chunks, and lets the ranks' old parts go.

    with Keeper(run / "metrics", kinds) as keeper:
        for merged in keeper.poll(time.monotonic()): …    each step once, in order, with all ranks that have a row of it

One process at a time may, which holds `RUN/metrics/.store.lock`; the system lets go of it when the process dies. Nothing about where it is needs to
be kept: a new keeper reads on behind the last stored row, and tells the steps that were not stored yet again. A part of a rank's log is removed when
all its rows are stored and flushed. Where the disk takes no chunk, rows stay in the ranks' logs and in memory up to `HELD_BYTES`; then the oldest of
memory are left out and counted. Cost: some 0.5 µs a value. When not to use it: to read a run (`query.py`), which never writes."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock, Timeout

from penstock.config import UserError, disk_errors
from penstock.monitor.series.chunk import About, pack_chunk
from penstock.monitor.series.coarse import Coarser, Rows
from penstock.monitor.series.columns import ALL, ColumnWriter
from penstock.monitor.series.gather import Gather
from penstock.monitor.series.kinds import Kinds
from penstock.monitor.series.merge import LATE_S, NO_END, Key, Merged, last_steps
from penstock.monitor.series.rows import parts_of
from penstock.monitor.series.table import ABSENT
from penstock.monitor.series.together import Whole, put_together

LOCK, STORE = ".store.lock", "store"
#: Bytes of tables that make a chunk, steps that it has at most, and bytes of tables that are held where the disk takes none.
CHUNK_BYTES, CHUNK_STEPS, HELD_BYTES = 8 << 20, 1 << 14, 64 << 20
#: Seconds after which a chunk that the disk did not take is tried again.
AGAIN_S = 5.0


class Keeper:
    """Owner of a run's store; `folder` is the run's `metrics`. Raises `UserError` if another process owns it."""

    def __init__(self, folder: Path, kinds: Kinds, late_s: float = LATE_S, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._folder, self._kinds, self._chunk_bytes = folder, kinds, chunk_bytes
        self._lock = FileLock(folder / LOCK, thread_local=False)
        with disk_errors(folder, "opening the store of metrics"):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise UserError(f"another process keeps the metrics of {folder}; end it, or leave them to it") from None
            self._writer = ColumnWriter(folder / STORE)
            self._coarser = Coarser(folder / STORE)
            self._coarser.catch_up(folder / STORE, ALL)
        self.gather = Gather(folder, self._writer.through, self._writer.generations.values(), late_s=late_s)
        self._held: deque[Merged] = deque()
        self._bytes, self._again = 0, 0.0
        self._finished: dict[Path, Key] = {}
        self._last: Key = self._writer.through
        self._parts: dict[int, tuple[int, int]] = {}
        #: Steps that could not be stored.
        self.unstored = 0

    @property
    def through(self) -> Key:
        """Generation and step of the last stored row."""
        return self._writer.through

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def poll(self, now: float) -> list[Merged]:
        """Steps that are ready, each once; `now` is a clock's that does not jump, seconds."""
        given = self.gather.poll(now)
        for merged in given:
            self._held.append(merged)
            self._bytes += merged.table.values_rm.nbytes
        self._note_parts()
        if (self._bytes >= self._chunk_bytes or len(self._held) >= CHUNK_STEPS) and now >= self._again:
            try:
                self.store()
            except OSError:
                self._again = now + AGAIN_S
        while self._bytes > max(HELD_BYTES, 2 * self._chunk_bytes):
            self._bytes -= self._held.popleft().table.values_rm.nbytes
            self.unstored += 1
        return given

    def store(self) -> None:
        """Make a chunk of what is held, and let go of the parts that it makes superfluous; raises OSError if the disk does not take it."""
        generations = tuple(self.gather.merger.generations.values())
        until = last_steps(list(generations))
        held = [merged for merged in self._held if merged.table.step <= until.get(merged.generation, NO_END)]
        if held:
            names = tuple(self.gather.merger.names.all)
            numbers = np.array([merged.generation for merged in held])
            steps, times = np.array([merged.table.step for merged in held]), np.array([merged.table.time for merged in held])
            rows = Rows(About(names, generations), numbers, steps, times, self._whole(held, names))
            self._writer.append(pack_chunk(rows.about, numbers, steps, times, rows.whole))
            self._last = held[-1].generation, held[-1].table.step
            with suppress(OSError):  # courses are then read from the rows themselves
                self._coarser.add(rows)
        self._held.clear()
        self._bytes = 0
        self._remove_parts()

    def close(self) -> None:
        """Let go of the store; rows that are in no chunk yet stay in the ranks' logs."""
        self._writer.close()
        self._coarser.close()
        self._lock.release()

    def _whole(self, held: list[Merged], names: tuple[str, ...]) -> Whole:
        """The five numbers of all steps and names, steps of one shape at once."""
        together = [self._kinds.of(name).together for name in names]
        pieces, begin = [], 0
        for end in range(1, len(held) + 1):
            if end == len(held) or _shape(held[end]) != _shape(held[begin]):
                values = np.stack([merged.table.values_rm for merged in held[begin:end]])
                missing = len(names) - values.shape[2]
                values = np.pad(values, ((0, 0), (0, 0), (0, missing)), constant_values=ABSENT) if missing else values
                pieces.append(put_together(values, held[begin].table.ranks, together))
                begin = end
        return pieces[0] if len(pieces) == 1 else Whole(*(np.concatenate([getattr(p, field) for p in pieces]) for field in Whole.__annotations__))

    def _note_parts(self) -> None:
        """Know what the last row is of parts that have been read to their end."""
        for rank, tail in self.gather.tails.items():
            if tail.part != self._parts.get(rank, tail.part):
                for generation, n, path in parts_of(tail.folder):
                    if (generation, n) < tail.part and path not in self._finished:
                        self._finished[path] = tail.before
            self._parts[rank] = tail.part

    def _remove_parts(self) -> None:
        for path in [path for path, last in self._finished.items() if last <= self._last]:
            with suppress(OSError):
                os.unlink(path)
            del self._finished[path]


def _shape(merged: Merged) -> tuple[tuple[int, ...], int]:
    return merged.table.ranks, merged.table.values_rm.shape[1]
