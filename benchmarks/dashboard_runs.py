"""Runs for `benchmarks/dashboard.py`: a thousand small ones, a very long one, and one that is written while it is watched."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from penstock.config import load_config, to_toml
from penstock.monitor.series import RowLog, write_kinds
from penstock.monitor.series.catalogue import CATALOGUE
from penstock.monitor.series.chunk import About, pack_chunk
from penstock.monitor.series.coarse import Coarser, Rows
from penstock.monitor.series.columns import ColumnWriter
from penstock.monitor.series.keeper import CHUNK_BYTES, STORE
from penstock.monitor.series.merge import Generation
from penstock.monitor.series.together import put_together
from penstock.store import writer_lock

LONG_METRICS, LONG_STEPS = 500, 1_000_000
#: Metrics, ranks and steps there already of the run that is watched.
LIVE_METRICS, LIVE_RANKS, LIVE_STEPS = 172, 8, 1500


def make_run(folder: Path) -> None:
    """Settings, identity and history of a run without rows."""
    (folder / "metrics").mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(load_config(None, [f"train.steps={LONG_STEPS}"])), encoding="utf-8")
    identity = {"run": folder.name, "created": "2026-01-01T00:00:00+0000", "command": "penstock train", "source": "benchmark"}
    (folder / "run.json").write_text(json.dumps(identity | {"environment": {f"package {i}": "1.0" for i in range(20)}}))


def many_runs(root: Path, count: int) -> None:
    """Finished runs with the files that a list reads."""
    make_run(root / "run-0000")
    settings, identity = ((root / "run-0000" / name).read_bytes() for name in ("config.toml", "run.json"))
    row = json.dumps({"time": 1.0, "step": 1000, "tokens": 10**6, "loss": 3.0, "tokens_per_s": 1e5} | {f"phase_{i}_s": 0.1 for i in range(30)}) + "\n"
    summary = json.dumps({"state": "finished", "step": 1000, "tokens": 10**6, "parameters": 10**8, "val_loss": 3.1, "tokens_per_s": 1e5})
    for i in range(count):
        folder = root / f"run-{i:04}"
        (folder / "metrics").mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_bytes(settings)
        (folder / "run.json").write_bytes(identity)
        (folder / "summary.json").write_text(summary)
        (folder / "metrics" / "train.jsonl").write_text(row * 20)


def long_run(root: Path) -> list[str]:
    """A run `long` of many metrics and steps in the store, in chunks as its keeper would make them; the metrics' names."""
    make_run(root / "long")
    names = [f"grad_norm/layer.{i:03d}" for i in range(LONG_METRICS)]
    about, draw = About(tuple(names), (Generation(1, 0, 1),)), np.random.default_rng(0)
    at_once = CHUNK_BYTES // (8 * LONG_METRICS)
    noise_sm = draw.standard_normal((at_once, LONG_METRICS)).astype(np.float32).astype(np.float64)
    store = root / "long" / "metrics" / STORE
    writer, coarser = ColumnWriter(store), Coarser(store)
    for begin in range(1, LONG_STEPS + 1, at_once):
        steps = np.arange(begin, min(begin + at_once, LONG_STEPS + 1))
        values = np.roll(noise_sm, begin, 0)[: len(steps), None] + 10
        whole = put_together(values, [0], ["spread"] * LONG_METRICS)
        rows = Rows(about, np.ones(len(steps), np.int64), steps, 1e9 + steps / 10, whole)
        writer.append(pack_chunk(rows.about, rows.generations, steps, rows.times, whole))
        coarser.add(rows)
    writer.close()
    coarser.close()
    return names


class LiveRun:
    """A run `live` that somebody writes, a step at a call; it holds the writer's lock within the block."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "live"
        make_run(self.folder)
        write_kinds(self.folder / "metrics", CATALOGUE)
        first = ["loss/total", "grad_norm/total", "cost/tokens_per_s", "time/step", "time/own", "wait/total", "memory/resident", "data/tokens_total"]
        self.names = first + [f"grad_norm/layer.{i:03d}" for i in range(LIVE_METRICS - len(first))]
        self._logs = [RowLog(self.folder / "metrics", rank, LIVE_RANKS, 1, 0) for rank in range(LIVE_RANKS)]
        self._draw, self._held = np.random.default_rng(0), ExitStack()
        for log in self._logs:
            log.names(self.names)
        self.step = 0
        for _ in range(LIVE_STEPS):
            self.write()

    def __enter__(self) -> LiveRun:
        self._held.enter_context(writer_lock(self.folder))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()

    def write(self) -> None:
        """The rows of the next step."""
        self.step += 1
        row = self._draw.standard_normal(LIVE_METRICS)
        for log in self._logs:
            log.append(self.step, time.time(), row)
