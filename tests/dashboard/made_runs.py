"""Folders of made-up runs, as training would leave them, in tenths of a second: rows of all ranks, settings, identity, history, alerts, snapshots.

    python -m tests.dashboard.made_runs OUT      four runs to look at, one of them going on until it is ended
"""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from tests.dashboard.made_values import CONTEXT, GLOBAL, PARAMETERS, Faults, MadeValues

from penstock.config import load_config, to_toml
from penstock.monitor.alerts import Alert, Book, kind_of
from penstock.monitor.detect import Moved
from penstock.monitor.series import Gather, Grid, RowLog, read_grid, write_kinds
from penstock.monitor.series.catalogue import CATALOGUE
from penstock.monitor.series.grid_file import write_grid
from penstock.monitor.series.keeper import Keeper
from penstock.monitor.series.kinds import Kinds
from penstock.monitor.series.shots import PLAN, StepShots, write_beside
from penstock.monitor.store import MetricStore
from penstock.store.cells.chunks import ChunkEntry
from penstock.store.places.folder import LocalFolder
from penstock.store.places.locks import writer_lock
from penstock.store.snapshots.manifest import Manifest, TensorEntry, write_manifest
from penstock.store.story.history import append_event, history_head
from penstock.store.story.timeline import tell_snapshot

#: Seconds of a made step.
STEP_S = 0.45
SETS = ["model.layers=12", "model.dim=768", "model.heads=12", f"model.context={CONTEXT}", f"batch.global={GLOBAL}", "batch.micro=4", "eval.every=100"]
PRICE = ("cost.per_device_hour=2.49", "cost.currency=EUR")
#: What stands in the rows in plain JSON.
PLAIN = {"tokens": "data/tokens_total", "loss": "loss/total", "tokens_per_s": "cost/tokens_per_s", "mfu": "cost/mfu", "step_s": "time/step"}
BEGAN = 1_790_000_000.0


class MadeRun:
    """One run's folder; `values` says what its ranks measure."""

    def __init__(self, parent: Path, name: str, values: MadeValues, began: float = BEGAN, sets: tuple[str, ...] = (), **identity: object) -> None:
        self.path, self.values, self.began, self.generation = parent / name, values, began, 0
        self.metrics = self.path / "metrics"
        self.path.mkdir(parents=True)
        config = load_config(None, [*SETS, f"train.steps={values.total}", *sets])
        (self.path / "config.toml").write_text(to_toml(config), encoding="utf-8")
        self._layout = {"replicate": values.ranks, "shard": 1, "context": 1, "expert": 1, "pipeline": 1, "tensor": 1, "ranks": values.ranks, "device": "cpu"}
        environment = {"penstock": "0.1.0", "python": "3.12.3", "torch": "2.13.0", "system": "Linux", "cpu": "a CPU", "cores": 8, "gpus": []}
        code = {"penstock": {"folder": "/code", "commit": "0123456789abcdef0123456789abcdef01234567", "branch": "main", "dirty": True, "changed": ["a.py"]}}
        told = {"run": name, "created": _iso(began), "command": f"penstock train small --nproc {values.ranks}", "source": "small", "data_digest": "ab" * 32}
        told |= {"data": {"source": "corpus/", "documents": 1000, "train_tokens": 10**8, "vocab": 50257}, "environment": environment, "code": code}
        (self.path / "run.json").write_text(json.dumps(told | identity, indent=2), encoding="utf-8")
        write_kinds(self.metrics, CATALOGUE)
        self._parent: Manifest | None = None
        self.begin(0)

    def begin(self, after: int, ranks: int = 0) -> None:
        """A new generation goes on after a step, with other ranks if need be: a start, a resume, a rewind."""
        self.values.ranks = ranks or self.values.ranks
        self.generation += 1
        self._logs = [RowLog(self.metrics, rank, self.values.ranks, self.generation, after) for rank in range(self.values.ranks)]

    def time(self, step: int) -> float:
        """When a step ended (unix seconds)."""
        return self.began + STEP_S * step

    def rows(self, first: int, last: int, only: tuple[int, ...] = (), now: bool = False) -> None:
        """Rows of those steps, of all ranks or some; `now`: they end now."""
        steps = np.arange(first, last + 1)
        values = self.values.at(steps)
        names, table = list(values), np.stack(list(values.values()), -1)
        for rank, log in enumerate(self._logs):
            if only and rank not in only:
                continue
            log.names(names)
            for i, step in enumerate(steps.tolist()):
                log.append(step, time.time() if now else self.time(step) + 0.001 * rank, table[i, rank])
        self._plain_rows(steps[-50:].tolist(), {name: value[-50:, 0].tolist() for name, value in values.items()}, now)

    def _plain_rows(self, steps: list[int], values: dict[str, list[float]], now: bool) -> None:
        """The rows in plain JSON, of which only the last count."""
        store = MetricStore(self.metrics)
        for i, step in enumerate(steps):
            told = {name: values[metric][i] for name, metric in PLAIN.items() if metric in values}
            store.append("train", {"time": time.time() if now else self.time(step), "step": step} | told)
        store.close()

    def keep(self) -> None:
        """Move all rows that are there into the store, as a monitor does."""
        with Keeper(self.metrics, Kinds(CATALOGUE)) as keeper:
            while keeper.poll(time.monotonic()):
                pass
            keeper.store()

    def evaluate(self, every: int, last: int) -> None:
        """Rows of evaluations and samples."""
        store = MetricStore(self.metrics)
        for step in range(every, last + 1, every):
            loss = 2.2 + 8.8 * (1 + step / 25) ** -0.5
            store.append("eval", {"time": self.time(step), "step": step, "tokens": step * GLOBAL * CONTEXT, "val_loss": loss, "seconds": 0.4})
            store.append("sample", {"time": self.time(step), "step": step, "prompt": "", "text": f"Once upon a step {step} <b>there</b> was a loss"})
        store.close()

    def lie(self, **axes: int) -> None:
        """Lay the ranks out another way, before the start is told."""
        self._layout |= {"replicate": 1} | axes

    def watch(self) -> None:
        """Keep the grid of ranks over time as a monitor does: what it had, and the rows that are still in the ranks' logs."""
        grid, gather = read_grid(self.metrics) or Grid(), Gather(self.metrics)
        for merged in gather.rest():
            grid.add(merged, gather.merger.generations[merged.generation])
        write_grid(grid, self.metrics)

    def shots(self, steps: tuple[int, ...], stages: int = 0, micros: int = 8, slow: int = -1) -> None:
        """What ranks did in some steps: phases and waits, and 1F1B over so many stages; and the plan of the pipeline."""
        scale = 0.36 / max(sum(one_f_one_b(stage, stages, micros, 1.6 if slow >= 0 else 1.0)[-1][1:]) for stage in range(max(1, stages))) if stages else 0.0
        for rank in range(self.values.ranks):
            shots = StepShots(self.metrics / f"rank-{rank:05d}", rank)
            shots._about["host"] = f"node{rank * 2 // self.values.ranks}"
            for step in steps:
                start, spans = self.time(step) - STEP_S, []
                actions = one_f_one_b(rank // max(1, self.values.ranks // stages), stages, micros, 1.6 if rank == slow else 1.0) if stages else []
                spans += [(f"pipeline.{name}", start + 0.02 + scale * begin, scale * took) for name, begin, took in actions]
                spans += [("data", start, 0.015), ("forward_backward", start + 0.018, 0.37), ("exchange", start + 0.39, 0.03), ("optimizer", start + 0.42, 0.025)]
                spans += [("replicate.gradients", start + 0.392, 0.02), ("world.norm", start + 0.413, 0.006)]
                shots.keep(step, start, start + STEP_S, sorted(spans, key=lambda span: span[1]))
        if stages:
            parts = [[3 * stage, 3 * stage + 3, stage == 0, stage == stages - 1] for stage in range(stages)]
            schedule, rows = {"kind": "1f1b", "micro_batches": micros}, [one_f_one_b(rank, stages, micros) for rank in range(stages)]
            plan = {"step": 1, "parts": parts, "rank_of": list(range(stages)), "schedule": schedule, "bubble": 0.24, "spans": rows}
            write_beside(self.metrics / PLAN, plan)

    def event(self, kind: str, text: str, step: int | None = None, **data: object) -> None:
        """An event of the history."""
        append_event(self.path, kind, text, step, **data)

    def start(self) -> None:
        """The event with which a run begins."""
        ranks = self.values.ranks
        axes = " · ".join(f"{name} {size}" for name, size in self._layout.items() if type(size) is int and size > 1 and name not in ("ranks", "node"))
        self.event("start", f"began on {ranks} ranks ({axes}) on cpu, float32", 0, snapshot=None, layout=self._layout)

    def snapshot(self, step: int, **about: object) -> None:
        """A snapshot of nearly nothing, with its manifest and event; `about` is what else it tells of itself (config, code)."""
        folder, digest, pack = LocalFolder(self.path), f"{step:040x}", f"step-{step:08d}-rank-00000-00000000.pack"
        folder.write(f"packs/{pack}", b"PENSTOCKPACK" + bytes(20))
        about = {"metrics": {"loss": 3.0, "val_loss": 3.1}, "history": history_head(self.path)} | about
        chunks = {digest: ChunkEntry(pack, 16, 4, "raw", None, "float32", 1)}
        tensors, parent = {"w": TensorEntry((1,), "float32", (digest,))}, self._parent.id if self._parent else None
        manifest = Manifest(step, parent, _iso(self.time(step)), tensors, chunks, {"step": step, "wall_s": STEP_S * step}, about)
        write_manifest(folder, manifest)
        tell_snapshot(self.path, manifest)
        self._parent = manifest

    def alert(self, kind: str, step: int, rank: int | None = None, layer: int | None = None, state: str = "open", what: str = "", moved: tuple[Moved, ...] = ()) -> Alert:
        """An alert of a kind, told after a step."""
        known = kind_of(kind)
        text = what or f"{kind.replace('_', ' ')} at step {step}"
        alert = Alert(f"{kind}-{step}", kind, known.level, "open", step, step - 2, self.time(step), 0.97, rank, layer, text, known.cause, known.advice, moved)
        book = Book(self.path)
        book.put("opened", alert)
        if state == "acknowledged":
            book.acknowledge(alert.id, "somebody")
        elif state == "resolved":
            book.put("resolved", alert.noting(f"passed at step {step + 80}", state="resolved"))
        return alert

    def finish(self, step: int, state: str = "finished") -> None:
        """The summary with which a run ends."""
        tokens = step * GLOBAL * CONTEXT
        evals = MetricStore(self.metrics).read("eval")
        told = {"run": str(self.path), "state": state, "step": step, "tokens": tokens, "parameters": PARAMETERS, "mfu": 0.37, "wall_s": STEP_S * step}
        told |= {"val_loss": evals[-1]["val_loss"] if evals else None, "evals": evals, "tokens_per_s": tokens / (STEP_S * step), "weights_digest": "cd" * 32}
        told |= {"recoveries": [], "sample": {"prompt": "", "text": "The end"}, "exchange": {"kind": "dense", "nodes": 1}, "finished": _iso(self.time(step))}
        (self.path / "summary.json").write_text(json.dumps(told), encoding="utf-8")


def one_f_one_b(rank: int, ranks: int, micros: int, slow: float = 1.0) -> list[tuple[str, float, float]]:
    """Name, start and length of a rank's actions in a 1F1B schedule, in shares of the step."""
    unit, found, at = 1 / (3 * (micros + ranks - 1)), [], 0.0
    ends: dict[tuple[str, int], float] = {}
    warm = min(micros, ranks - rank - 1)
    order = [("F", micro) for micro in range(warm)]
    for micro in range(micros):
        order += ([("F", micro + warm)] if micro + warm < micros else []) + [("B", micro)]
    for work, micro in order:
        ready = unit * (rank + micro) if work == "F" else unit * (ranks + 2 * (ranks - rank - 1) + 3 * micro)
        start, took = max(at, ready), unit * (1 if work == "F" else 2) * slow
        ends[work, micro] = at = start + took
        found.append((f"{rank}{work}{micro}", start, took))
    return found


def small_run(parent: Path, name: str = "small", steps: int = 40, ranks: int = 2, layers: int = 2, **options: object) -> MadeRun:
    """A finished run of few steps with rows, an evaluation and a start."""
    run = MadeRun(parent, name, MadeValues(ranks=ranks, layers=layers, total=steps), **options)
    run.start()
    run.rows(1, steps)
    run.evaluate(max(1, steps // 2), steps)
    run.finish(steps)
    return run


def demo(out: Path) -> MadeRun:
    """Four runs: one going on with a straggler, one that finished, one that failed, one with many alerts; the first is returned."""
    now = time.time()
    done = MadeRun(out, "gpt2-small-finished", MadeValues(total=3000, seed=1), now - 9000)
    done.start()
    done.rows(1, 3000)
    for step in range(500, 3001, 500):
        done.snapshot(step, config={"optim": {"lr": 6e-4 if step <= 1500 else 3e-4, "clip": 1.0}}, code={"penstock": {"commit": "0123456789abcdef" * 2, "branch": "main", "diff": None}})
    done.event("change", "optim.lr 0.0006 → 0.0003", 1500, settings={"optim.lr": [0.0006, 0.0003]}, command="change", who="somebody@host")
    done.alert("throughput_drop", 900, state="resolved")
    done.watch()
    done.keep()
    done.evaluate(100, 3000)
    done.finish(3000)
    origin = {"run": str(done.path.resolve()), "step": 1500, "snapshot": "ef" * 32}
    failed = MadeRun(out, "high-rate-failed", MadeValues(total=3000, seed=2, rate=6e-3, faults=Faults(non_finite=730)), now - 6000, ("optim.lr=6e-3",), forked_from=origin)
    done.event("fork", f"forked to {failed.path.resolve()}; with optim.lr 0.0006 → 0.006", 1500, snapshot="ef" * 32, to=str(failed.path.resolve()))
    failed.start()
    failed.rows(1, 735)
    failed.evaluate(100, 700)
    nan = Moved("grad_norm/layer.11.ffn", 730, math.inf, 0.1, math.inf, 2)
    failed.alert("non_finite", 730, rank=2, layer=11, what="the loss is no number from step 730 on", moved=(nan,))
    failed.event("failure", "step 735: the loss is not finite for 6 steps", 735)
    faulty = MadeRun(out, "poisoned <img src=x onerror=alert(1)>", MadeValues(total=2000, seed=3, faults=Faults(straggler=(800, 2), lasts=400, poisoned=600)), now - 5000)
    faulty.start()
    faulty.rows(1, 1100)
    faulty.event("failure", "rank 3 was killed (signal 9) after step 1100", 1100)
    faulty.event("recovery", "went on after step 1050 with 3 ranks: rank 3 was lost", 1050, ranks=3)
    faulty.begin(1050, ranks=3)
    faulty.rows(1051, 1400)
    for step in (500, 1000, 1400):
        faulty.snapshot(step)
    faulty.evaluate(100, 1400)
    faulty.alert("data_corruption", 601, rank=1, state="acknowledged", moved=(Moved("data/surprise", 600, 11.2, 7.2, 80.0, 1), Moved("loss/total", 600, 6.4, 3.9, 60.0)))
    faulty.alert("straggler", 812, rank=2, what="rank 2 takes 2.2 times as long as the others", moved=(Moved("time/own", 800, 0.9, 0.41, 31.0, 2),))
    faulty.alert("rank_lost", 1100, rank=3)
    faulty.event("change", "optim.lr 0.0006 → 0.0003", 1300, settings={"optim.lr": [0.0006, 0.0003]}, command="change", who="somebody@host")
    faulty.finish(1400, "interrupted")
    live = MadeRun(out, "llama-live", MadeValues(ranks=8, total=20000, seed=4, experts=8, device=True, faults=Faults(straggler=(1500, 5))), now - 1600 * STEP_S, PRICE)
    live.lie(pipeline=4, replicate=2, node=2)
    live.start()
    live.rows(1, 1000)
    live.snapshot(1000)
    live.watch()
    live.keep()
    live.rows(1001, 1600)
    live.shots((512, 1024, 1536, 1600), stages=4, slow=5)
    live.watch()
    live.evaluate(100, 1600)
    live.alert("straggler", 1512, rank=5, what="rank 5 takes 2.2 times as long as the others", moved=(Moved("time/own", 1500, 0.95, 0.43, 33.0, 5),))
    return live


def main(out: Path) -> None:
    """Make the demo below `out`, and let its live run go on, two steps a second, until it is ended."""
    live = demo(out)
    print(f"made four runs below {out}; {live.path.name} goes on until this is ended", flush=True)
    with ExitStack() as held, suppress(KeyboardInterrupt):
        held.enter_context(writer_lock(live.path))
        step = 1601
        while True:
            live.rows(step, step, now=True)
            step += 1
            time.sleep(STEP_S)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
