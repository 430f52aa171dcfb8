"""More or fewer ranks between two steps: the ranks' part of `penstock scale`.

    the command comes (`requests/obey.py`) → is there memory for it? → wait for snapshots that are being written → those that will leave hand over
    what only they have (`parallel/peer_copies.py`) → all leave their groups in order, and wait for the next generation, which takes their state up

No step is lost and none is taken again. What waits for the run to go on is answered, and told, after the first step of the new generation.

Cost: what leaving ranks alone hold goes over the network twice; then as any state that is taken up (`take_up.py`). When not to use it: nothing to be
done in memory; another number of ranks at the next start is `penstock resume RUN --nproc N`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NoReturn

import psutil
import torch
from torch import Tensor

from penstock.config import UserError
from penstock.engine.build import Parts
from penstock.engine.record.journal import memory_bytes
from penstock.engine.requests.commands import Answer, Command, answer
from penstock.engine.saving import placed
from penstock.engine.starting.resolve import check_world
from penstock.engine.survive.fewer import config_for
from penstock.engine.transition import StateMap
from penstock.parallel import hand_over
from penstock.plan.layout import heaviest, workloads

#: Bytes that a process takes before it holds a model.
PROCESS = 300 << 20
#: Copies that `survive.copies` keeps in a rank's memory, at most: two of its own state and two of its neighbour's (`guard/peers.py`).
COPIES = 4


class Parted(Exception):
    """The ranks of a generation have left each other in order; `handed`: what this one keeps of ranks that end, by rank; whether it `ends` itself."""

    def __init__(self, handed: dict[int, dict[str, Tensor]], ends: bool) -> None:
        super().__init__("the generation has ended in order")
        self.handed, self.ends = handed, ends


@dataclass(frozen=True)
class Asked:
    """A change of the number of ranks that is being made: the command, the ranks before and after, which left, when it began (monotonic) and by the
    clock: a number that a rank had before may be another's after it.
    """

    command: Command
    before: int
    after: int
    left: tuple[int, ...]
    since: float
    time: float


class Parting:
    """Carries out `scale` commands on one rank."""

    def __init__(self) -> None:
        self.asked: Asked | None = None

    def scale(self, parts: Parts, command: Command) -> NoReturn:
        """End this generation in order; raises `Parted`, or `UserError` where memory does not allow it. Handles a command (`requests/obey.py`)."""
        size = parts.world.size
        ranks, leaving = after(command, size)
        _check_memory(parts, ranks)
        self.asked = Asked(command, size, ranks, leaving, time.monotonic(), time.time())
        parts.saving.settle(parts)
        where = StateMap.of(parts)
        handed = hand_over(parts.tensors(), where.placements, where.layout, parts.world.axis, leaving)
        parts.world.barrier()
        raise Parted(handed, parts.world.rank in leaving)

    def tell(self, parts: Parts) -> None:
        """The run has gone on: tell whoever asked, the user and the history. Where ranks were lost meanwhile, the supervisor has answered."""
        asked, self.asked = self.asked, None
        if asked is None or parts.world.size != asked.after:
            return
        seconds, size, step = round(time.monotonic() - asked.since, 3), parts.world.size, parts.progress.step - 1
        why = asked.command.arguments.get("why") or f"as {asked.command.who} asked"
        text = f"{_ranks(asked.before)} became {_ranks(size)} ({parts.layout}), {why}; {seconds:.2f} s without a step"
        parts.journal.event(step, "scale", text)
        parts.journal.say(f"step {step}: {text}")
        more = {"who": asked.command.who, "seconds": seconds, "layout": placed(parts), "left": list(asked.left), "parted": asked.time}
        parts.saving.tell_history("change", text, step, command="scale", **more)
        if parts.world.is_lead:
            answer(parts.run.path, asked.command.name, Answer("done", text, step, seconds, {"before": asked.before, "ranks": size}))


def after(command: Command, size: int) -> tuple[int, tuple[int, ...]]:
    """How many ranks a `scale` command makes of `size`, and which leave: those that it names, else the last ones."""
    if leaving := tuple(command.arguments.get("leaving") or ()):
        return size - len(leaving), leaving
    ranks = int(command.arguments["ranks"])
    return ranks, tuple(range(ranks, size))


def _check_memory(parts: Parts, ranks: int) -> None:
    """Raise `UserError` on all ranks if there is no memory for another number of them, beside the old state until it is carried."""
    config, device = config_for(parts.config, ranks), parts.world.device
    held = heaviest(workloads(config, check_world(config, ranks)), config.optim)[1]
    needs = held.total
    old = sum(tensor.numel() * tensor.element_size() for tensor in parts.tensors().values())
    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).total_memory
        lacking, what = needs + old - most, f"a GPU has {most / 1e9:.1f} GB"
    else:
        needs += COPIES * (held.weights + held.moments) if config.survive.copies and ranks > 1 else 0
        there = sum(parts.world.gather_numbers(memory_bytes(device), "memory"))
        free = psutil.virtual_memory().available
        grow = ranks * (needs + PROCESS) + sum(parts.world.gather_numbers(old, "memory")) - there
        lacking, what = grow - free, f"this host has {free / 1e9:.1f} GB left, beside {there / 1e9:.1f} GB that the run has"
    if parts.world.any(lacking > 0, "memory"):
        each = f"each needs about {needs / 1e9:.2f} GB, and {old / 1e9:.2f} GB of the old state until it is carried"
        raise UserError(f"there is no memory for {_ranks(ranks)}: {each}; {what}; choose another number of ranks")


def _ranks(number: int) -> str:
    return f"{number} rank{'s' * (number != 1)}"
