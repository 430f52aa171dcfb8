"""Writing down what a run does: metrics store, TensorBoard, live line, and the summary at the end.

The loop tells the journal what happened; only the lead rank's journal writes. Rows use plain units: seconds, bytes,
tokens, nats, shares of one. Utilisation is training FLOPs by the stated formula (`models/flops.py`) over the matrix
product speed *measured on this machine* (`plan.measure_peak`), so 100 % is what its own hardware was seen to do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil
import torch

from penstock.comm import World
from penstock.config import Config, UserError
from penstock.engine.record.exchange_report import ExchangeTotals, exchange_summary
from penstock.engine.record.rows import Taken
from penstock.engine.state import Progress
from penstock.models import flops_per_token
from penstock.monitor import LiveLine, MetricStore, TensorBoardWriter
from penstock.monitor.cost import Cost
from penstock.store import Run

if TYPE_CHECKING:
    from penstock.engine.build import Parts
    from penstock.engine.step import StepResult

#: Steps after a start that the mean speed leaves out: they carry compilation and cold caches.
WARM_UP_STEPS = 2


class Journal:
    """Record of one run; `peak_flops` is the measured ceiling of all ranks together, FLOP/s."""

    def __init__(self, run: Run, config: Config, world: World, peak_flops: float, from_step: int) -> None:
        self._config, self._world, self._peak = config, world, peak_flops
        self._flops_per_token = flops_per_token(config.model)
        self.sample: dict[str, str] = {}
        #: What was measured at the current step: its loss, and its validation loss if it was evaluated.
        self.measured: dict[str, float] = {}
        #: What this rank has sent and waited for.
        self.exchanged = ExchangeTotals()
        self._steps, self._seconds, self._tokens = 0, 0.0, 0
        self._store: MetricStore | None = None
        self._refused = False
        self._board: TensorBoardWriter | None = None
        self._live: LiveLine | None = None
        self._run = run
        self._open(from_step)

    @property
    def peak_a_rank(self) -> float:
        """The measured ceiling of one rank, FLOP/s."""
        return self._peak / self._world.size

    def join(self, world: World, step: int) -> None:
        """Go on from `step` in a new world, whose lead writes from now on."""
        self._peak = self.peak_a_rank * world.size
        self._world = world
        if self._store is None:
            self._open(step)
        else:
            self._store.truncate_after(step)

    def follow(self, config: Config) -> None:
        """Go on with other settings; the mean speed is that of steps with them."""
        self._config, self._flops_per_token = config, flops_per_token(config.model)
        self.forget_speed()
        if self._live is not None:
            self._live.until(config.train.steps)

    def _open(self, from_step: int) -> None:
        """On the lead, make ready to write."""
        if self._world.is_lead:
            self._store = MetricStore(self._run.path / "metrics")
            self._live = LiveLine(self._config.train.steps)
        self.rewind(from_step)

    def rewind(self, step: int) -> None:
        """Forget what was recorded of later steps, which will be taken again."""
        if self._store is not None:
            self._store.truncate_after(step)
        if self._board is not None:
            self._board.close()
        if self._live is not None and self._config.metrics.tensorboard:
            self._board = TensorBoardWriter(self._run.path / "events", step)

    def step(self, parts: Parts, result: StepResult, began: float, seconds: float) -> None:
        """Record a finished step that began at `began` (`time.perf_counter`) and took `seconds`."""
        phases, traffic, notes = parts.timer.take(), parts.world.meter.take(), parts.notes
        parts.notes = {}
        parts.recording.step(parts, result, Taken(began, seconds, phases, traffic, parts.world.meter.hidden, parts.world.meter.outside, notes))
        self.exchanged.add(traffic, seconds)
        self.measured = {"loss": result.loss}
        self._steps += 1
        if self._steps <= WARM_UP_STEPS + 1:
            self._seconds, self._tokens = 0.0, 0  # until there are others, the last of the first steps counts
        self._seconds, self._tokens = self._seconds + seconds, self._tokens + result.tokens
        if self._store is None or self._live is None:
            return
        speed = result.tokens / seconds
        row = {
            "step": parts.progress.step,
            "tokens": parts.progress.tokens,
            "loss": result.loss,
            "lr": self._config.optim.lr * result.lr_factor,
            "grad_norm": result.grad_norm,
            "tokens_per_s": speed,
            "mfu": self.utilisation(speed),
            "step_s": seconds,
            "micro_batch": parts.micro,
            "memory_bytes": memory_bytes(self._world.device),
        }
        row |= {f"{name}_s": value for name, value in phases.items()} | traffic | notes
        self._live.update(row)
        if parts.progress.step % self._config.metrics.every == 0:
            self._write("train", row)

    def evaluation(self, progress: Progress, loss: float, prompt: str, text: str, seconds: float) -> None:
        """Record a validation loss (nats per token) and a sample."""
        self.measured |= {"val_loss": loss}
        row = {"step": progress.step, "tokens": progress.tokens, "val_loss": loss, "seconds": seconds}
        if self._live is not None:
            self._write("eval", row)
            self._live.update(row)
            self._live.message(f"step {progress.step}: validation loss {loss:.4f}")
        if self._store is not None and text:
            self.sample = {"prompt": prompt, "text": text}
            self._append("sample", {"step": progress.step} | self.sample)

    def event(self, step: int, what: str, text: str) -> None:
        """Record something that happened, such as a snapshot or a failure."""
        if self._store is not None:
            self._append("event", {"step": step, "what": what, "text": text})

    def warn(self, text: str) -> None:
        """Tell the user and record it."""
        if self._live is not None:
            self._live.message(f"warning: {text}")
        self.event(0, "warning", text)

    def say(self, text: str) -> None:
        """Print a line above the live line, on the lead rank."""
        if self._live is not None:
            self._live.message(text)

    def utilisation(self, tokens_per_s: float) -> float:
        """Share of the measured peak that training at this speed uses."""
        return tokens_per_s * self._flops_per_token / self._peak if self._peak else 0.0

    def speed(self) -> float:
        """Mean tokens per second of this process's steps, evaluation and start-up left out."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def forget_speed(self) -> None:
        """Leave the steps so far out of the mean speed."""
        self._steps = 0

    def close(self) -> None:
        """Flush everything."""
        for part in (self._live, self._store, self._board):
            if part is not None:
                part.close()
        self._live, self._store, self._board = None, None, None

    def _append(self, kind: str, row: dict[str, Any]) -> None:
        """Add a row; one that the disk does not take is missed, which is said once, as no training should end for it."""
        assert self._store is not None
        try:
            self._store.append(kind, row)
            self._refused = False
        except UserError as error:
            if not self._refused:
                self.say(f"warning: {error}; rows of metrics are missing meanwhile")
            self._refused = True

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self._append(kind, row)
        if self._board is not None:
            self._board.write(row["step"], {f"{kind}/{name}": value for name, value in row.items() if name != "step"})


def cost_of(parts: Parts) -> dict[str, Any]:
    """Hours of all ranks together, and what they came to where the settings name a price."""
    price = parts.config.cost
    cost = Cost.of(price.per_device_hour, price.currency).at(parts.progress.device_s / 3600, None, 0)
    return {name: value for name, value in cost.as_dict().items() if value not in (None, "")}


def memory_bytes(device: torch.device) -> int:
    """Peak bytes on a GPU since the start, or this process's resident bytes on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def summary(parts: Parts, digest: str, state: str) -> dict[str, Any]:
    """The object that `train --json` prints and `summary.json` holds; all ranks must call it."""
    progress, speed = parts.progress, parts.journal.speed()
    return {
        "run": str(parts.run.path),
        "state": state,
        "step": progress.step,
        "tokens": progress.tokens,
        "parameters": parts.weights.n_total,
        "val_loss": progress.evals[-1]["val_loss"] if progress.evals else None,
        "evals": progress.evals,
        "tokens_per_s": speed,
        "mfu": parts.journal.utilisation(speed),
        "wall_s": progress.wall_s,
        "cost": cost_of(parts),
        "weights_digest": digest,
        "recoveries": progress.recoveries,
        **({"exchange": exchange_summary(parts, parts.journal.exchanged)} if parts.world.size > 1 else {}),
        "sample": parts.journal.sample,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
