"""Replaying: compute the steps from one snapshot of a run to another again, and compare what comes out with what was stored.

The later snapshot should be a function of the earlier one, of code, settings and samples. Here that is tried: in a folder of its own the run goes
on from the first, leg by leg with the settings, ranks and threads that the history tells (`legs.py`), and the state at the second's step is held
against it, cell by cell by digest. Evaluations, samples of text and snapshots in between are left out, as they change nothing.

On the same kind of machine with the same layout, threads and versions the result is the same bit for bit. Where it is not, the first tensor that
differs is named with the place, and what of the circumstances is known to differ: sums in another order give other roundings. Settings by which a
run follows measured times (`MEASURED`) make it depend on more than was recorded.

Cost: the steps themselves, and one snapshot on the disk, beside the run if that may be written (so that packs are linked), else in the system's
folder for temporary files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.comm import World, join_world, under_launcher
from penstock.config import Config, UserError, flat, with_values
from penstock.engine.starting.launch import start_ranks
from penstock.engine.starting.resolve import check_ranks, check_world, cores
from penstock.engine.starting.worker import run_rank
from penstock.engine.story.legs import Leg, legs
from penstock.engine.story.origin import record_origin
from penstock.store import LocalFolder, Run, Snapshot, create_run, in_use, list_snapshots, read_history, save_config
from penstock.store.cells.contents import Contents
from penstock.store.places.take_over import link_packs
from penstock.store.snapshots.lineage import lineage
from penstock.store.snapshots.manifest import write_manifest
from penstock.store.story.diff import SnapshotDiff, compare
from penstock.store.story.diff_text import shown
from penstock.store.story.difference import Difference, difference

#: Settings under which a run follows measured times, by their values for which it does.
MEASURED = {"balance.data": ("measured",), "batch.micro": ("auto",), "exchange.kind": ("auto",), "exchange.topology": ("measured",)}
#: What a replay leaves out, and does not measure.
QUIET = {
    "eval.every": 0, "eval.sequences": 1, "eval.sample_tokens": 0, "snapshot.every": 0, "snapshot.keep": 0, "snapshot.keep_every": 0,
    "snapshot.keep_hours": 0.0, "snapshot.keep_best": 0, "metrics.tensorboard": False, "metrics.peak_tflops": 1.0, "pipeline.trace": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Replayed:
    """What a replay gave: equal, or the tensors that differ, the first of them and the one furthest apart, and what may be why."""

    run: Path
    begin: Contents
    end: Contents
    legs: list[Leg]
    ranks: int
    seconds: float
    tensors: int
    differ: list[str]
    first: Difference | None
    furthest: Difference | None
    reasons: list[str]

    @property
    def equal(self) -> bool:
        """Whether every number is the same, bit for bit."""
        return not self.differ

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        ends = {name: {"step": c.manifest.step, "id": c.manifest.id} for name, c in (("from", self.begin), ("to", self.end))}
        taken = [{"first": leg.first, "last": leg.last, "layout": leg.layout, "changes": [vars(one) for one in leg.changes]} for leg in self.legs]
        apart = {name: told and told.as_dict() for name, told in (("first", self.first), ("furthest", self.furthest))}
        facts = {"tensors": self.tensors, "differ": self.differ, **apart, "reasons": self.reasons}
        return {"run": str(self.run), "equal": self.equal, **ends, "legs": taken, "ranks": self.ranks, "seconds": self.seconds} | facts

    def text(self) -> str:
        """For people."""
        begin, end = self.begin.manifest, self.end.manifest
        what = f"{self.run}: step {begin.step} ({begin.id[:12]}) to step {end.step} ({end.id[:12]}), computed again in {self.seconds:.1f} s"
        how = [f"  steps {leg.first + 1} to {leg.last} on {_ranks(self.ranks or leg.ranks)}{_through(leg)}" for leg in self.legs]
        if self.first is None or self.furthest is None:
            although = [f"  although  {reason}" for reason in self.reasons]
            return "\n".join([what, *how, f"bit for bit: all {self.tensors} tensors are what was stored", *although])
        place = f"[{', '.join(map(str, self.first.place))}]"
        return "\n".join([
            what,
            *how,
            f"differs: {len(self.differ)} of {self.tensors} tensors",
            f"  first     {self.first.name}{place}: stored {self.first.before!r}, computed {self.first.after!r}",
            f"  furthest  {self.furthest.name}, by {self.furthest.relative:.2e} of its norm",
            *(f"  reason    {reason}" for reason in self.reasons or ["none is recorded: layout, threads, versions and code are the same"]),
        ])


def replay(begin: Snapshot, end: Snapshot, nproc: int = 0) -> Replayed:
    """Compute from `begin` to `end` again, on `nproc` ranks (0: as many as it was), and compare; raises `UserError` where that cannot be done."""
    assert isinstance(end.folder, LocalFolder)
    if under_launcher():
        raise UserError("a replay starts its ranks itself; call it without torchrun")
    run, began = Run(end.folder.path), time.perf_counter()
    with in_use(begin), in_use(end):
        a, b = Contents(begin), Contents(end)
        _check_line(a, b)
        parts = legs(read_history(run.path).events, a.manifest, b.manifest)
        for leg in parts:
            check_ranks(nproc or leg.ranks, leg.config.run.device, cores())
            check_world(_quiet(leg), nproc or leg.ranks)
        with _scratch(run.path) as folder:
            computed = Contents(_compute(run, a, b, parts, nproc, folder))
            told = compare(b.manifest, computed.manifest)
            apart = [difference(b, computed, name) for name in told.tensors.differ]
    furthest = max(apart, key=lambda one: one.relative, default=None)
    reasons = _otherwise(told) + (_followed(parts[-1].config) if apart else [])
    seconds = time.perf_counter() - began
    return Replayed(
        run.path, a, b, parts, nproc, seconds, len(b.manifest.tensors), told.tensors.differ, apart[0] if apart else None, furthest, reasons
    )


def _check_line(begin: Contents, end: Contents) -> None:
    """Refuse snapshots of which the second does not go on from the first."""
    line = lineage(end.snapshot.folder, end.manifest)
    if begin.manifest.id not in {link.id for link in line[1:]}:
        known = ", ".join(f"{link.step} ({link.id[:12]})" for link in line[1:] if link.here)
        raise UserError(
            f"step {end.manifest.step} ({end.manifest.id[:12]}) does not go on from step {begin.manifest.step} ({begin.manifest.id[:12]}); "
            f"it goes on from step {known or '– of none that is still here; keep more with snapshot.keep'}"
        )
    if not end.manifest.about.get("config"):
        raise UserError(f"step {end.manifest.step} does not say with which settings it was made, so it cannot be replayed")


def _quiet(leg: Leg) -> Config:
    """A leg's settings, with all left out that makes no difference to the state."""
    threads = leg.layout.get("threads")
    return with_values(leg.config, QUIET | ({"run.threads": threads} if isinstance(threads, int) else {}))


def _compute(run: Run, begin: Contents, end: Contents, parts: list[Leg], nproc: int, folder: Path) -> Snapshot:
    """Go on from `begin` in a new run in `folder`, leg by leg; the snapshot at the end."""
    scratch = create_run(_quiet(parts[0]), folder / run.path.resolve().name, {"data_digest": (end.manifest.about.get("data") or {}).get("digest")})
    record_origin(scratch)
    shutil.copytree(run.path / "tokenizer", scratch.path / "tokenizer")
    link_packs(run.path, scratch.path, begin.manifest.packs)
    write_manifest(scratch.folder, begin.manifest)
    for leg in parts:
        ranks = nproc or leg.ranks
        save_config(scratch, _quiet(leg))
        changes = [[one.step, one.without(QUIET).settings] for one in leg.changes]
        scratch.write("replay.json", {"until": leg.last, "changes": [entry for entry in changes if entry[1]]})
        if ranks == 1:
            run_rank(scratch, World(device=join_world(leg.config.run.device, 1).device), until=leg.last)
        else:
            ended = "the replay ended there; the run is as it was"
            start_ranks("penstock.engine.story.replay_rank", scratch.path, ranks, leg.config.layout.port, ended)
    reached = list_snapshots(scratch.folder)[-1]
    if reached.step != end.manifest.step:
        raise UserError(f"the replay was stopped at step {reached.step}; the run is as it was")
    return reached


@contextmanager
def _scratch(run: Path) -> Iterator[Path]:
    """A folder for the replay, beside the run if that may be, which goes when the block ends."""
    beside = run.resolve().parent
    folder = Path(tempfile.mkdtemp(prefix=".replay-", dir=beside if os.access(beside, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _otherwise(told: SnapshotDiff) -> list[str]:
    """What is known to be otherwise than it was."""
    found = [f"other {part}: {_changed(told, part)}" for part in ("layout", "environment") if told.parts[part]]
    other = [change for change in told.code if not change.same]
    return found + [f"other code: {change.checkout}, {_code(change.before)} then, {_code(change.after)} now" for change in other]


def _followed(config: Config) -> list[str]:
    """Settings by which what came out depended on more than was recorded."""
    settings = flat(config)
    found = [f"{name} = {settings[name]!r}: the run followed measured times" for name, values in MEASURED.items() if settings[name] in values]
    if config.layout.pipeline > 1 and config.pipeline.schedule == "auto":
        found.append("pipeline.schedule = 'auto': the run followed measured times of its stages")
    if config.snapshot.increments == "bounded":
        found.append("snapshot.increments = 'bounded': snapshots before the last are not exactly the states that training went on from")
    return found


def _changed(told: SnapshotDiff, part: str) -> str:
    return ", ".join(f"{change.name} {shown(change.before)} → {shown(change.after)}" for change in told.parts[part])


def _code(record: dict[str, Any] | None) -> str:
    if record is None:
        return "none recorded"
    return f"{str(record.get('commit') or 'no commit')[:12]}{' with changes' if record.get('diff') else ''}"


def _through(leg: Leg) -> str:
    """The changes on a leg's way."""
    return "".join(f"; after step {one.step} {', '.join(one.settings)} changed" for one in leg.changes)


def _ranks(n: int) -> str:
    return f"{n} rank{'' if n == 1 else 's'}"
