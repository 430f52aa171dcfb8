"""The part of `store_training` on two ranks: `python -m benchmarks.store_training_ranks FOLDER` below the launcher, answers in `FOLDER/figures.json`.

Ways of saving take turns, a window of `STEPS` steps each: none, Penstock's and torch's. A window begins with its save and ends when that and
the steps are done, as it is where every 20th step saves.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load as load_torchs
from torch.distributed.checkpoint.state_dict_saver import async_save

from benchmarks.rank import answer
from benchmarks.timing import ratio
from penstock.comm import World
from penstock.config import load_config
from penstock.engine import StopRequest, build_core
from penstock.engine.build import Core
from penstock.engine.starting.resolve import outline
from penstock.engine.step import take_step
from penstock.lab.equivalence import RandomPlan
from penstock.store import LocalFolder, Saver, list_snapshots, load_snapshot

#: 29.5 M parameters, 4,096 tokens a step.
SETS = [
    "model.layers=8", "model.dim=512", "model.heads=8", "model.vocab=4096", "data.vocab=4096", "model.context=256", "batch.global=16",
    "batch.micro=4", "compile.enabled=off", "precision.compute=float32", "optim.warmup=0",
]  # fmt: skip
STEPS = 20
TURNS = int(os.environ.get("PENSTOCK_STORE_TURNS", "3"))
READS, READ = 3, 1 << 22


class Penstock:
    """Snapshots of the store, as runs take them."""

    def __init__(self, core: Core, folder: Path) -> None:
        self.core, self.folder = core, LocalFolder(folder / "penstock")
        self.saver = Saver(self.folder, core.world)
        self.saver.prepare(core.tensors(), core.placements(), core.layout)
        self.saver.wait()

    def begin(self, step: int) -> None:
        """Begin to save."""
        self.saver.save(step, self.core.tensors(), self.core.placements(), self.core.layout, {}, {})

    def finish(self) -> None:
        """Wait for it."""
        self.saver.wait()
        assert all(outcome.snapshot for outcome in self.saver.outcomes())


class Torch:
    """torch.distributed.checkpoint's asynchronous saves, each into a folder of its own."""

    def __init__(self, core: Core, folder: Path) -> None:
        self.core, self.folder = core, folder / "torch"
        self.group = dist.new_group(backend="gloo")
        self.future: Future[Any] | None = None

    def begin(self, step: int) -> None:
        """Begin to save."""
        saved = async_save(self.core.tensors(), checkpoint_id=str(self.folder / str(step)), process_group=self.group)
        assert isinstance(saved, Future)
        self.future = saved

    def finish(self) -> None:
        """Wait for it."""
        if self.future is not None:
            self.future.result()


class Copy:
    """A plain copy of the whole state to memory that has been used before: what a stall is held against."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.rooms = {name: torch.zeros_like(tensor) for name, tensor in core.tensors().items()}

    def begin(self) -> None:
        """Copy."""
        for name, tensor in self.core.tensors().items():
            self.rooms[name].copy_(tensor)

    @property
    def n_bytes(self) -> int:
        """Bytes of the state."""
        return sum(room.nbytes for room in self.rooms.values())


def figures(world: World, folder: Path) -> dict[str, float]:
    """The ways in turns, then reading back what was saved last."""
    config = outline(load_config(None, SETS))
    core = build_core(config, world, RandomPlan(config), StopRequest(supervised=True), print)
    ways: dict[str, Penstock | Torch | None] = {"none": None, "penstock": Penstock(core, folder), "torch": Torch(core, folder)}
    windows: dict[str, list[float]] = {name: [] for name in ways}
    stalls: dict[str, list[float]] = {name: [] for name in ways}
    asides: dict[str, list[float]] = {name: [] for name in ways}
    copy, copies, step = Copy(core), [], 0
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            copied = longest(world, copy.begin)
            began, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
            stall = longest(world, partial(way.begin, step)) if way else 0.0
            for _ in range(STEPS if turn else 2):
                take_step(core, step)
                step += 1
            if way:
                way.finish()
            took = max(world.gather_numbers(time.perf_counter() - began, "time"))
            own = time.thread_time() - own
            aside = max(world.gather_numbers((time.process_time() - cpu - own) / own, "time"))
            if turn:  # the first warms up
                copies.append(copied)
                windows[name].append(took)
                stalls[name].append(stall)
                asides[name].append(aside)
    found = {"state_mb": copy.n_bytes / 1e6, "step_s": statistics.median(windows["none"]) / STEPS, "copy_s": statistics.median(copies)}
    for name in ("penstock", "torch"):
        slower = ratio(windows[name], windows["none"])
        found |= {f"{name}_slowdown": slower["ratio"] - 1, f"{name}_slowdown_low": slower["low"] - 1, f"{name}_slowdown_high": slower["high"] - 1}
        found[f"{name}_cpu_share"] = statistics.median(a - b for a, b in zip(asides[name], asides["none"]))
        found |= {f"{name}_stall_s": max(stalls[name]), f"{name}_stall_over_copy": max(stalls[name]) / found["copy_s"]}
    return found | (restore(copy, folder) if world.is_lead else {})


def longest(world: World, work: Callable[[], None]) -> float:
    """Seconds of something that all ranks do: those of the slowest."""
    world.barrier()
    began = time.perf_counter()
    work()
    return max(world.gather_numbers(time.perf_counter() - began, "time"))


def restore(copy: Copy, folder: Path) -> dict[str, float]:
    """Bytes a second of loading the whole state into one process, with all cores and nothing cached, over those of reading files from the disk."""
    torch.set_num_threads(os.cpu_count() or 1)
    snapshots, saved = list_snapshots(folder / "penstock"), max((folder / "torch").iterdir(), key=lambda path: int(path.name))
    ways: dict[str, Callable[[], object]] = {
        "full": lambda: load_snapshot(snapshots[0], copy.rooms),
        "increments": lambda: load_snapshot(snapshots[-1], copy.rooms),
        "torch": lambda: load_torchs(copy.rooms, checkpoint_id=str(saved), no_dist=True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in (*ways, "disk")}
    for _ in range(READS):
        speeds["disk"].append(read_speed(sorted((folder / "penstock" / "packs").iterdir())))
        for name, load in ways.items():
            forget(folder)
            began = time.perf_counter()
            load()
            speeds[name].append(copy.n_bytes / (time.perf_counter() - began))
    found = {"disk_mb_s": statistics.median(speeds["disk"]) / 1e6}
    for name in ways:
        over = ratio(speeds[name], speeds["disk"])
        found |= {f"restore_{name}_over_disk": over["ratio"], f"restore_{name}_low": over["low"], f"restore_{name}_high": over["high"]}
    return found


def read_speed(files: list[Path]) -> float:
    """Bytes a second of reading files one after the other, nothing cached."""
    forget(files[0].parent)
    n_bytes, began = 0, time.perf_counter()
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while block := stream.read(READ):
                n_bytes += len(block)
    return n_bytes / (time.perf_counter() - began)


def forget(folder: Path) -> None:
    """Let the system drop what it has cached of a folder's files."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.exit(answer(folder, lambda world: figures(world, folder), 1800.0))
