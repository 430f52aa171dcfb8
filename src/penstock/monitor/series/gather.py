"""Reading the rows of all ranks of a run and putting them together, from where the store ends on; once to the end, or again and again as they come.

Ranks are read in turn, those that are behind first, so that what waits for others stays within `merge.WAITING_BYTES`. Which generations there are is
known before the first row is read. Cost: that of the tails and of the merge, a few µs a row. It opens files for reading only. When not to use it: for
what the store holds already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from penstock.monitor.series.merge import LATE_S, WAITING_BYTES, Generation, Key, Merged, Merger
from penstock.monitor.series.rows import parts_of, rank_folders
from penstock.monitor.series.table import Names
from penstock.monitor.series.tail import CHUNK_BYTES, LEAST_BYTES, Damage, RowTail, first_about

#: Before everything.
NOTHING: Key = (-1, -1)


class Gather:
    """Tables of a run's steps behind `through`; `folder` is its `metrics`, `wanted` leaves out other metrics."""

    def __init__(
        self,
        folder: Path,
        through: Key = NOTHING,
        generations: Iterable[Generation] = (),
        wanted: Callable[[str], bool] | None = None,
        late_s: float = LATE_S,
    ) -> None:
        self.folder, self._wanted = folder, wanted
        self.merger = Merger(Names(), through, late_s)
        self.tails: dict[int, RowTail] = {}
        self._reached: dict[int, Key] = {}
        for generation in [*generations, *generations_of(folder)]:
            self.merger.meet(generation)

    @property
    def damage(self) -> list[Damage]:
        """What could not be read so far."""
        return [damage for tail in self.tails.values() for damage in tail.damage]

    @property
    def lost(self) -> int:
        """Rows that ranks measured and that are not to be had: dropped by a disk, or damaged."""
        return sum(tail.lost for tail in self.tails.values())

    def poll(self, now: float) -> list[Merged]:
        """Read once from every rank that is not ahead of others, and give what is ready; `now` is any clock's, seconds."""
        return self.merger.ready(now, more=self._read(now))

    def rest(self) -> Iterator[Merged]:
        """All that is there now, to the end."""
        more = True
        while more:
            more = self._read(0.0)
            yield from self.merger.ready(0.0, more=True)
        yield from self.merger.rest()

    def _read(self, now: float) -> bool:
        """Read on from the ranks whose turn it is, from all if these have nothing; whether there was anything."""
        turn = self._turn()
        return self._read_from(turn, now) or (len(turn) < len(self.tails) and self._read_from(list(self.tails), now))

    def _read_from(self, ranks: list[int], now: float) -> bool:
        found = False
        for rank in ranks:
            for rows in self.tails[rank].read():
                found = True
                self._reached[rank] = max(self._reached[rank], (rows.about.generation, int(rows.steps[-1])))
                self.merger.add(rows.only(self._wanted) if self._wanted else rows, now)
        return found

    def _turn(self) -> list[int]:
        """All ranks, or those that are behind where much waits for them."""
        folders = rank_folders(self.folder)
        for rank in sorted(folders.keys() - self.tails.keys()):
            self.tails[rank] = RowTail(folders[rank], min(CHUNK_BYTES, max(LEAST_BYTES, WAITING_BYTES // 4 // len(folders))))
            self._reached[rank] = NOTHING
        if self.merger.waiting_bytes < WAITING_BYTES // 2:
            return list(self.tails)
        behind = min(self._reached.values())
        return [rank for rank in self.tails if self._reached[rank] == behind]


def generations_of(folder: Path) -> list[Generation]:
    """The generations that ranks' logs begin."""
    found: dict[int, Generation] = {}
    for path in rank_folders(folder).values():
        for number, _, part in parts_of(path):
            if number not in found and (about := first_about(part)):
                found[number] = Generation(number, about.after, about.ranks)
    return list(found.values())
