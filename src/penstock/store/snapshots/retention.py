"""Which snapshots stay, and removing what no longer has to: snapshots by policy, then the packs that none of the others needs.

Kept is what any rule keeps: the newest `keep`, steps divisible by `keep_every`, the first of every `keep_hours` of training (its own time, not the
clock's), the `keep_best` lowest validation losses, what is pinned, what is being read; and always the newest whole one. A snapshot that is
damaged is not counted, so it cannot push out a good one.

The order makes it safe to be killed anywhere: history first, then manifests, then packs. What remains half-way is a store of complete snapshots and
some packs without a name, which the next collection removes. While a run is being written, its packs have no name yet: then only packs of
snapshots dropped in the same collection go; likewise where a manifest cannot be read, as nobody knows what it needs. Only on a disk too full for
another line does the history come last.

Cost: one look at the index, and removing files. Space is freed by whole packs: one stays while any chunk of it is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.config import Config, UserError
from penstock.store.cells.packs import PACKS, pack_file
from penstock.store.places.folder import PARTIAL, LocalFolder
from penstock.store.places.locks import ALL, current_writer, snapshots_in_use, store_lock
from penstock.store.snapshots.index import Row, indexed
from penstock.store.snapshots.manifest import ID, SNAPSHOTS, Snapshot, read_manifest
from penstock.store.story.history import append_event

PINS = "pins.json"
THREADS = 16  # that remove files
_STEP = re.compile(r"/step-(\d{8,12})-")


@dataclass(frozen=True)
class Policy:
    """What retention keeps; `keep` newest ones with 0 for all, the other rules with 0 for none."""

    keep: int = 2
    keep_every: int = 0
    keep_hours: float = 0.0
    keep_best: int = 0


def policy_of(
    config: Config, keep: int | None = None, keep_every: int | None = None, keep_hours: float | None = None, keep_best: int | None = None
) -> Policy:
    """The policy of a run's settings, with what is given in place of theirs."""
    own = config.snapshot
    return Policy(
        own.keep if keep is None else keep,
        own.keep_every if keep_every is None else keep_every,
        own.keep_hours if keep_hours is None else keep_hours,
        own.keep_best if keep_best is None else keep_best,
    )


@dataclass(frozen=True)
class Collected:
    """What a collection removed, or would; `left` says why something that looks unused stays."""

    dropped: list[Row]
    packs: list[str]
    bytes: int
    kept: int
    left: list[str]
    dry_run: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return vars(self) | {"dropped": [{"id": row.id, "step": row.step} for row in self.dropped]}


def collect(run: Path, policy: Policy, dry_run: bool = False, published: int | None = None) -> Collected:
    """Drop snapshots that the policy does not keep, and packs that no snapshot needs.

    `published` is for the run's own writer: the step of the snapshot it has just published, packs of later ones being in the making. Raises
    `UserError` when the pins cannot be read, or the disk refuses.
    """
    folder = LocalFolder(run)
    with store_lock(folder):
        found, sizes = indexed(folder), folder.sizes(PACKS)
        whole = [row for row in found.rows if all(sizes.get(pack_file(pack), -1) >= end for pack, end in row.ends.items())]
        kept = chosen(whole, policy) | held(found.rows, read_pins(run), snapshots_in_use(run))
        kept |= {row.file for row in found.rows[found.rows.index(whole[-1]) if whole else 0 :]}  # newer, but damaged: not ours to judge
        dropped = [row for row in found.rows if row.file not in kept]
        left = [f"{file} cannot be read: packs that it may need stay" for file in found.damaged]
        writer = current_writer(run) if published is None else None
        left += [f"the run is being written by {writer}: packs of snapshots to come stay"] if writer else []
        packs = [name for name in sizes if not name.endswith(PARTIAL)]
        unneeded = _unneeded(found.rows, dropped, packs, published, bool(left))
        collected = Collected(dropped, unneeded, sum(sizes[name] for name in unneeded), len(found.rows) - len(dropped), left, dry_run)
        if not dry_run:
            _remove(folder, collected, published, writer is not None)
    return collected


def held(rows: list[Row], pins: Set[str], used: Set[str]) -> set[str]:
    """Files of the snapshots that are pinned (by id), or being read (by its first 12 digits, or ALL)."""
    return {row.file for row in rows if row.id in pins or row.id[:12] in used or ALL in used}


def chosen(rows: list[Row], policy: Policy) -> set[str]:
    """Files of the snapshots that the policy keeps, of whole ones from the oldest to the newest."""
    kept = {row.file for row in (rows[-policy.keep :] if policy.keep else rows)} | {row.file for row in rows[-1:]}
    if policy.keep_every:
        kept |= {row.file for row in rows if row.step % policy.keep_every == 0}
    if policy.keep_hours:
        kept |= set({row.wall_s // (policy.keep_hours * 3600): row.file for row in reversed(rows)}.values())
    scored = sorted((row.val_loss, row.step, row.file) for row in rows if row.val_loss is not None)
    return kept | {file for _, _, file in scored[: policy.keep_best]}


def _unneeded(rows: list[Row], dropped: list[Row], packs: Iterable[str], published: int | None, careful: bool) -> list[str]:
    """Files of packs that no row but the dropped needs; of those that no row names, the ones that no snapshot to come will."""
    gone = {row.file for row in dropped}
    needed = {pack_file(pack) for row in rows if row.file not in gone for pack in row.ends}
    condemned = {pack_file(pack) for row in dropped for pack in row.ends}
    return [name for name in packs if name not in needed and (name in condemned or not (careful or _to_come(name, published)))]


def _to_come(name: str, published: int | None) -> bool:
    match = _STEP.search(name)
    return published is not None and match is not None and int(match[1]) > published


def _remove(folder: LocalFolder, collected: Collected, published: int | None, written: bool) -> None:
    told = not collected.dropped
    with suppress(UserError):  # on a full disk there is room for an event only afterwards
        told = told or _tell(folder.path, collected, published is not None)
    partial = [name for name in [*folder.names(SNAPSHOTS), *folder.names(PACKS)] if name.endswith(PARTIAL) and not _to_come(name, published)]
    _remove_all(folder, [row.file for row in collected.dropped])
    folder.settle(SNAPSHOTS)
    _remove_all(folder, collected.packs + ([] if written else partial))
    folder.settle(PACKS)
    if not told:
        _tell(folder.path, collected, published is not None)


def _remove_all(folder: LocalFolder, names: list[str]) -> None:
    """Remove files, several at a time: each may wait for a disk or a network."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(folder.remove, names))


def _tell(run: Path, collected: Collected, automatic: bool) -> bool:
    first, last = collected.dropped[0].step, collected.dropped[-1].step
    steps = f"step {first}" if len(collected.dropped) == 1 else f"{len(collected.dropped)} snapshots from step {first} to {last}"
    append_event(run, "gc", f"dropped {steps}", dropped=[row.id for row in collected.dropped], bytes=collected.bytes, automatic=automatic)
    return True


def read_pins(run: Path) -> set[str]:
    """Ids of the snapshots that retention never drops; raises `UserError` if the file is damaged."""
    try:
        pins = json.loads(LocalFolder(run).read(PINS))
        if isinstance(pins, list) and all(isinstance(pin, str) and ID.fullmatch(pin) for pin in pins):
            return set(pins)
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, RecursionError):
        pass
    raise UserError(f"{run / PINS} is damaged, so nothing is removed; restore it, or replace it by [] and pin again what must stay")


def pin(snapshot: Snapshot, keep: bool = True) -> str:
    """Keep a snapshot whatever the policy says, or no longer; returns its id."""
    folder = snapshot.folder
    assert isinstance(folder, LocalFolder)
    full = read_manifest(snapshot).id
    with store_lock(folder):
        pins = read_pins(folder.path)
        folder.write(PINS, json.dumps(sorted(pins | {full} if keep else pins - {full})).encode())
    return full
