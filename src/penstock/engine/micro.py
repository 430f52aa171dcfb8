"""`batch.micro = "auto"`: how many sequences to compute at a time, chosen while the run trains.

Every step makes the same global batch, whatever the size, so the first steps try sizes and time them, and nothing is lost: small ones leave
cores idle between short operations (and a pipeline little to hide its transfers behind), large ones fall out of caches, need memory, and leave
a pipeline few micro-batches to fill its bubble with. The seconds of a step contain all of that. The sizes are the divisors of a rank's share of
the batch that the schedule takes (`allowed`): first powers of two, up from the start and then down, each way until one is clearly slower than the
best; then all of them, around the best. A size counts with the fastest of its steps after the first. What ranks measured is agreed on by their
slowest, so all choose alike.

Sizes whose activations by the plan's estimate do not fit are left out. A larger one than before is rehearsed ahead of its step, two
micro-batches without exchange, so that running out of memory there costs the size and not the run: the ranks agree whether any did. They can only
where nothing is exchanged inside a micro-batch, or all run out at the same place; in other layouts the estimate has to do, with a wider margin.

Trials run eagerly, and the model is compiled when the size is chosen: every size would be compiled anew, for longer than the trials take. Cost: some
three steps a size, five to eight sizes, none of them much slower than the best. When not to use: for runs of a few dozen steps, and
where two runs must agree bit for bit, as the size decides in what order gradients are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from penstock.comm import World
from penstock.config import Config, with_values
from penstock.parallel import Layout
from penstock.parallel.layout import micro_batch, micro_sizes
from penstock.plan.footprint import footprint
from penstock.plan.layout import workload

if TYPE_CHECKING:
    from penstock.engine.build import Core, Parts

#: Steps at one size: the first is not counted, and the fastest of the others is its time.
STEPS_A_SIZE = 3
#: Trials go on in a direction until a size is slower than the best by this share; and of sizes within the other, the smallest is taken.
CLEARLY, ALIKE = 0.05, 0.01
#: What the estimate must leave room for: its activations so many times, where running out of memory can be agreed on and where not.
MARGIN, WIDE_MARGIN = 1.0, 1.5

Search = Generator[int, float, int]


class MicroTuner:
    """Proposes the size of every step, and settles on one; with a single size there is nothing to settle."""

    def __init__(self, world: World, sizes: Sequence[int], start: int) -> None:
        """`sizes` are those that may be used, ascending, the same on all ranks; trials begin at the nearest to `start`."""
        self.size = min(sizes, key=lambda size: (abs(math.log(size / start)), size))
        #: Seconds of a step by size, of those tried; infinity where memory ran out.
        self.seconds: dict[int, float] = {}
        self._world = world
        self.restart(sizes)

    def restart(self, sizes: Sequence[int]) -> None:
        """Forget what was measured and try anew from the present size, because what a step costs or allows has changed."""
        self.seconds = {}
        self._times: list[float] = []
        self._search: Search | None = _search(sizes, self.size, self.seconds)
        self._advance(None)

    @property
    def settled(self) -> bool:
        """Whether the size stays as it is."""
        return self._search is None

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
    for ladder in (powers, sizes):
        near = min(seconds, key=lambda size: seconds[size]) if seconds else min(powers, key=lambda size: (abs(math.log(size / start)), size))
        yield from _climb(ladder, near, seconds)
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
            if seconds[size] > min(seconds.values()) * (1 + CLEARLY) and size != start:
                break
            place += way


def build_tuner(config: Config, world: World, layout: Layout, hint: int, allowed: Callable[[int], bool] = lambda size: True) -> MicroTuner:
    """The tuner of a run: of the one size that `batch.micro` gives, or of all that may do; `hint` is what an earlier start chose (0: none)."""
    first = micro_batch(config, layout)
    if config.batch.micro != "auto":
        return MicroTuner(world, [first], first)
    return MicroTuner(world, possible_sizes(config, world, layout, allowed), hint or first)


def possible_sizes(config: Config, world: World, layout: Layout, allowed: Callable[[int], bool]) -> list[int]:
    """Sizes that the schedule takes and that fit every rank's memory by estimate; the smallest that is taken, at least."""
    sizes = [size for size in micro_sizes(config, layout) if allowed(size)]
    room = free_bytes(world) / (WIDE_MARGIN if layout.data < layout.ranks or layout.sharded or layout.context > 1 else MARGIN)
    fits = [size for size in sizes if step_bytes(config, layout, size) <= room]
    most = min(world.gather_numbers(float(max(fits, default=0)), "micro_batch"))
    return [size for size in sizes if size <= most] or sizes[:1]


def step_bytes(config: Config, layout: Layout, size: int) -> int:
    """What a step with micro-batches of `size` is estimated to need beyond weights and moments."""
    held = footprint(workload(with_values(config, {"batch.micro": size}), layout), config.optim)
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
    return free / world.local_size


def tune_micro(parts: Parts, seconds: float) -> None:
    """After a step that took `seconds`: settle what the next one's micro-batches are, and say so when that is for good."""
    tuner, step = parts.tuner, parts.progress.step
    if tuner.settled:
        return
    before = tuner.size
    if step - parts.first_step > 1:  # the first step of a process warms up what all sizes share
        tuner.observe(seconds)
    while not tuner.settled and tuner.size > max(before, *tuner.seconds, 0) and not rehearse(parts, tuner.size):
        tuner.give_up()
    if tuner.settled:
        parts.progress.micro = tuner.size
        parts.journal.event(step, "micro_batch", f"batch.micro = {tuner.size} from here on; seconds of a step by size: {tuner.figures()}")
        parts.journal.say(f"step {step}: batch.micro = {tuner.size} ({tuner.figures()})")
        parts.journal.forget_speed()
        parts.compile(parts.journal.warn)


def rehearse(parts: Core, size: int) -> bool:
    """Compute two micro-batches of `size` and drop the gradients; return whether no rank ran out of memory. All ranks must call it."""
    ids = parts.sequences_of(parts.plan.sample_ids(0), parts.world.rank)
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
    parts.forget_loads()
    if parts.world.any(not enough, "micro_batch"):
        if parts.world.device.type == "cuda":
            torch.cuda.empty_cache()
        return False
    return True


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the GPU or in the host's allocator."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
