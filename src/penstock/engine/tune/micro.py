"""`batch.micro = "auto"`: how many sequences to compute at a time, chosen while the run trains.

Every step makes the same global batch, whatever the size, so the first steps try sizes and time them, and nothing is lost: small ones leave
cores idle between short operations (and a pipeline little to hide its transfers behind), large ones fall out of caches, need memory, and leave
a pipeline few micro-batches to fill its bubble with. The seconds of a step contain all of that. The sizes are the divisors of a rank's share of
the batch that the schedule takes: first powers of two, up from the start and then down, each way until one is clearly slower than the
best; then all of them, around the best; at last the fastest three a second time. A size counts with the fastest of its steps, but for the first
after a change. What ranks measured is agreed on by their slowest, so all choose alike.

Sizes that by the plan's estimate do not fit are left out. A larger one than before is rehearsed ahead of its step: two micro-batches without exchange
of gradients, so that running out of memory there costs the size and not the run; the ranks agree whether any did. They can only where nothing is
exchanged inside a micro-batch, or all run out at the same place; in other layouts the estimate has to do, with a wider margin, as on a CPU,
where the system ends a process that takes too much. A pipeline, which holds several micro-batches at once, is not rehearsed.

Trials run eagerly, and the model is compiled when the size is chosen: every size would be compiled anew, for longer than the trials take. Cost: three
steps a trial, eight to eleven trials, none of them much slower than the best. When not to use: for runs of a few dozen steps, and
where two runs must agree bit for bit, as the size decides in what order gradients are rounded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

from penstock.comm import World
from penstock.config import Config, with_values
from penstock.models import balance_experts
from penstock.parallel import Layout
from penstock.parallel.layout import micro_sizes
from penstock.plan.layout import heaviest, workloads
from penstock.plan.pipeline import first_size, takes

if TYPE_CHECKING:
    from penstock.engine.build import Core, Parts

#: Steps at one size: the first is not counted, and the fastest of the others is its time.
STEPS_A_SIZE = 3
#: Trials go on in a direction until a size is slower than the best by this share; and of sizes within the other, the smallest is taken.
CLEARLY, ALIKE = 0.1, 0.01
#: So many of the fastest sizes are timed a second time, as a machine may have been slower for a while; the better time counts.
AGAIN = 3
#: Free memory must be so many times the estimate, where running out of memory can be agreed on and where not.
MARGIN, WIDE_MARGIN = 1.0, 1.5

Search = Generator[int, float, int]


class MicroTuner:
    """Proposes the size of every step, and settles on one; with a single size there is nothing to settle."""

    def __init__(self, world: World, sizes: Sequence[int], start: int) -> None:
        """`sizes` are those that may be used, ascending, the same on all ranks; trials begin at the nearest to `start`."""
        self.size = start
        #: Seconds of a step by size, of those tried; infinity where memory ran out.
        self.seconds: dict[int, float] = {}
        self._world = world
        self.restart(sizes)

    def restart(self, sizes: Sequence[int]) -> None:
        """Forget what was measured and try anew, from the size nearest to the present one, because what a step costs or allows has changed."""
        self.seconds = {}
        self._times: list[float] = []
        self._search: Search | None = _search(sizes, self.size, self.seconds)
        self._advance(None)

    @property
    def settled(self) -> bool:
        """Whether the size stays as it is."""
        return self._search is None

    @property
    def is_new(self) -> bool:
        """Whether no step of the present size has been observed since it was proposed."""
        return not self._times

    @property
    def largest(self) -> int:
        """The largest size of which steps were observed, 0 at first."""
        return max((size for size, seconds in self.seconds.items() if math.isfinite(seconds)), default=0)

    def observe(self, seconds: float) -> None:
        """Take in what a step of the present size took on this rank; all ranks must call it while the size is not settled."""
        self._times.append(max(self._world.gather_numbers(seconds, "micro_batch")))
        if len(self._times) == STEPS_A_SIZE:
            self._advance(min(self._times[1:]))

    def give_up(self) -> None:
        """Take the present size for one that does not fit; all ranks must call it."""
        self._advance(math.inf)

    def figures(self) -> str:
        """What was tried, in words."""
        words = {size: "out of memory" if math.isinf(seconds) else f"{seconds:.4g} s" for size, seconds in sorted(self.seconds.items())}
        return ", ".join(f"{size}: {text}" for size, text in words.items())

    def _advance(self, seconds: float | None) -> None:
        assert self._search is not None
        self._times = []
        try:
            self.size = next(self._search) if seconds is None else self._search.send(seconds)
        except StopIteration as done:
            self.size, self._search = done.value, None


def _search(sizes: Sequence[int], start: int, seconds: dict[int, float]) -> Search:
    """Yield sizes to try, take in their seconds, and return the one to stay with."""
    if len(sizes) == 1:
        return sizes[0]
    powers = [size for size in sizes if size & (size - 1) == 0] or sizes
    yield from _climb(powers, min(powers, key=lambda size: abs(math.log(size / start))), seconds)
    yield from _climb(sizes, min(seconds, key=lambda size: seconds[size]), seconds)
    for size in sorted((size for size in seconds if math.isfinite(seconds[size])), key=lambda size: seconds[size])[:AGAIN]:
        seconds[size] = min(seconds[size], (yield size))
    least = min(seconds.values())
    return min(size for size, took in seconds.items() if took <= least * (1 + ALIKE))


def _climb(ladder: Sequence[int], start: int, seconds: dict[int, float]) -> Generator[int, float, None]:
    """Try `start`, then the sizes above it and those below, each way until one is clearly slower than the best."""
    for way in (1, -1):
        place = ladder.index(start)
        while 0 <= place < len(ladder):
            size = ladder[place]
            if size not in seconds:
                seconds[size] = yield size
            slower = seconds[size] > min(seconds.values()) * (1 + CLEARLY)
            if slower or (way > 0 and math.isinf(seconds[size])):
                break
            place += way


def build_tuner(config: Config, world: World, layout: Layout, hint: int) -> MicroTuner:
    """The tuner of a run: of the one size that `batch.micro` gives, or of all that may do; `hint` is what an earlier start chose (0: none)."""
    first = first_size(config, layout)
    if config.batch.micro != "auto":
        return MicroTuner(world, [first], first)
    return MicroTuner(world, possible_sizes(config, world, layout), hint or first)


def possible_sizes(config: Config, world: World, layout: Layout) -> list[int]:
    """Sizes that the schedule takes and that fit every rank's memory by estimate; the smallest that is taken, at least."""
    sizes = [size for size in micro_sizes(config, layout) if takes(config, layout, size)]
    agreed = world.device.type == "cuda" and layout.size("replicate") == layout.ranks and layout.expert == 1
    room = free_bytes(world) / (MARGIN if agreed else WIDE_MARGIN)
    fits = [size for size in sizes if step_bytes(config, layout, size) <= room]
    most = min(world.gather_numbers(float(max(fits, default=0)), "micro_batch"))
    return [size for size in sizes if size <= most] or sizes[:1]


def step_bytes(config: Config, layout: Layout, size: int) -> int:
    """What a step with micro-batches of `size` is estimated to need beyond weights and moments."""
    _, held = heaviest(workloads(with_values(config, {"batch.micro": size}), layout), config.optim)
    return held.total - held.weights - held.moments


def free_bytes(world: World) -> float:
    """Memory that this rank may still take: of its GPU, or its share of what is free on the host or in its control group."""
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
        return free + torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        free = free if limit.strip() == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def tune_micro(parts: Parts, seconds: float) -> None:
    """After a step that took `seconds`: settle what the next one's micro-batches are, and say so when that is for good."""
    tuner, step = parts.tuner, parts.progress.step
    if tuner.settled:
        return
    tuner.observe(seconds)
    skip_what_does_not_fit(parts)
    if tuner.settled:
        parts.progress.micro = tuner.size
        parts.journal.event(step, "micro_batch", f"batch.micro = {tuner.size} from here on; seconds of a step by size: {tuner.figures()}")
        parts.journal.say(f"step {step}: batch.micro = {tuner.size}, the fastest of {tuner.figures()}")
        parts.journal.forget_speed()
        parts.compile(parts.journal.warn)


def restart_micro(parts: Core) -> None:
    """Try sizes anew, because the schedule or a rank's speed is another; nothing where `batch.micro` is a number."""
    if parts.config.batch.micro == "auto":
        if parts.pipeline is not None:
            parts.pipeline.run_eagerly()
        parts.tuner.restart(possible_sizes(parts.config, parts.world, parts.layout))
        skip_what_does_not_fit(parts)


def skip_what_does_not_fit(parts: Core) -> None:
    """Rehearse the size to try next if it is the largest so far, and pass on to another while memory runs out."""
    tuner = parts.tuner
    while not tuner.settled and tuner.is_new and tuner.size > tuner.largest and parts.layout.pipeline == 1:
        if rehearse(parts, tuner.size):
            return
        tuner.give_up()


def rehearse(parts: Core, size: int) -> bool:
    """Compute two micro-batches of `size` and drop the gradients; return whether no rank ran out of memory. All ranks must call it."""
    ids = parts.sequences_of(np.arange(parts.config.batch.global_), parts.world.rank)
    enough = True
    try:
        for start in range(0, min(2 * size, len(ids)), size):
            parts.laid.sharder.begin_micro_batch(True)
            (parts.loss(parts.own_tokens(parts.plan.fetch(ids[start : start + size]))) * parts.nominal_weight).backward()
    except Exception as error:
        if not out_of_memory(error):
            raise
        enough = False
    parts.weights.drop_gradients()
    if parts.config.model.moe.experts:
        balance_experts(parts.decoder, 0.0, None)  # a rehearsal is no load
    if parts.world.any(not enough, "micro_batch"):
        if parts.world.device.type == "cuda":
            torch.cuda.empty_cache()
        return False
    return True


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the GPU or in the host's allocator."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
