"""`balance.data = "measured"`: each replica's share of the next global batch follows its measured speed.

A *replica* is the ranks that read the same sequences; it is as fast as its slowest rank. After every step all ranks tell each other their own
seconds (`own_time.py`, one small all-reduce), and each works out the same shares from them:

    seconds of a replica     its busiest rank's computation, plus the exchange inside the replica that even the last rank to arrive sees
    seconds a sequence       `parallel/pace.py`: steady under noise, quick after a change, deaf to stalls
    shares                   `parallel/shares.py`: the fastest in whole sequences, within bounds, kept unless a step gains 3 %

Where a step has parts that do not shrink with the share (launches, experts' rows that come from others), the next steps show it in the seconds
a sequence, and the shares go on until all replicas end together. The loss is weighted by the tokens of the global batch, so the update stays the
same, whatever the shares, up to the order of additions; a run with measured shares therefore repeats to rounding, not bit for bit. Shares are
in the snapshot, and hold on resuming in the same layout.

Shares are even while `batch.micro = "auto"` tries sizes, in evaluation, and between the ranks of a 2.5-D grid. When not to use it: on alike
ranks, where it costs a small all-reduce a step for nothing.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np
import torch

from penstock.comm import World
from penstock.config import Config, ConfigError
from penstock.engine.tune.own_time import Own, OwnTime
from penstock.parallel import Layout
from penstock.parallel.layout import TENSOR
from penstock.parallel.pace import WINDOW, Pace
from penstock.parallel.shares import Rules, Shares, imbalance, next_shares, step_seconds
from penstock.plan.pipeline import takes_count

if TYPE_CHECKING:
    from penstock.engine.build import Parts

#: Steps at the start that are not counted: they carry cold caches and set-up.
WARM_UP = 2
#: Bytes of a host's name that are told; shares that an event lists one by one.
HOST_BYTES, MOST_NAMED = 64, 8


class DataBalancer:
    """How a global batch is shared out over the replicas, and what was learned of their speed; shares never change where balancing is off."""

    def __init__(self, config: Config, layout: Layout, world: World, saved: dict[str, list[int]]) -> None:
        """`saved` are the shares of a run that goes on; raises `ConfigError` where a rank's own time cannot be told."""
        axes = [axis for axis in layout.sequence_axes if axis not in TENSOR]
        grid = [axis for axis in layout.sequence_axes if axis in TENSOR]
        self._layout, self._world = layout, world
        self.replicas = layout.size(*axes)
        self.replica_of = [layout.index(rank, axes) for rank in range(layout.ranks)]
        self._parts = layout.size(*grid)
        self._part_of = [layout.index(rank, grid) for rank in range(layout.ranks)]
        self._sequences = config.batch.global_ // self._parts
        self._rules = partial(
            Rules, self._sequences, self.replicas, coupled=layout.sharded or layout.expert > 1 or layout.pipeline > 1,
            takes=partial(takes_count, config, layout),
        )  # fmt: skip
        self._limit = 0 if config.batch.micro == "auto" else config.batch.micro
        #: Each replica's sequences of a global batch, on each of its ranks of a grid.
        self.shares: Shares = self.even
        self.measured = config.balance.data == "measured" and self.replicas > 1
        self._own = OwnTime(world.meter, world.device)
        self._forget()
        if not self.measured:
            return
        if layout.sharded and world.device.type == "cuda":
            raise ConfigError(
                f"balance.data = 'measured' does not go with layout.shard = {layout.shard} on CUDA, where FSDP2's exchange runs beside the "
                "computation and a rank's own time cannot be told from its waiting; use layout.replicate, or set balance.data to 'off'"
            )
        self._hosts = hosts(world)
        kept = tuple(saved.get(str(layout), ()))
        if self._limit and self.rules(self._limit).allow(kept):
            self.shares = kept

    @property
    def even(self) -> Shares:
        """The same share for each replica."""
        return (self._sequences // self.replicas,) * self.replicas

    def rules(self, micro: int) -> Rules:
        """What shares must obey, where `micro` sequences at a time are chosen and `batch.micro` is no number."""
        return self._rules(limit=self._limit or micro)

    def numbers(self) -> dict[str, list[int]]:
        """Uneven shares, for a snapshot."""
        return {} if self.shares == self.even else {str(self._layout): list(self.shares)}

    def cut(self, sample_ids: np.ndarray, rank: int, shares: Shares) -> np.ndarray:
        """The sequences of a global batch that a rank has a part in."""
        ends = np.cumsum(shares) * self._parts
        of_replica = np.split(sample_ids, ends[:-1])[self.replica_of[rank]]
        return np.split(of_replica, self._parts)[self._part_of[rank]]

    def micro_batches(self, sample_ids: np.ndarray, micro: int, shares: Shares) -> list[np.ndarray]:
        """A rank's sequences, cut into micro-batches: of `micro` sequences where shares are even, else as few, and as equal, as can be."""
        count = len(sample_ids) // micro if shares == self.even else self.rules(micro).count(shares, len(sample_ids))
        assert count, f"shares {shares} cannot be computed"
        return np.array_split(sample_ids, count)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Time the forward and backward passes of a step."""
        if not self.measured:
            yield
            return
        with self._own.measure():
            yield

    def after_step(self, parts: Parts) -> None:
        """Take in the step that was taken, and settle the shares of the next; all ranks must call it."""
        if not self.measured:
            return
        if not parts.tuner.settled:
            self.shares = self.even
            self._forget()
            return
        marks = parts.pipeline.marks if parts.pipeline is not None else []
        times = self._exchange(self._own.read([(start, end) for _, start, end in marks]))
        before, step = self.observe(times, parts.micro, parts.notes), parts.progress.step
        if self.shares != before:
            text = self._words(before)
            parts.journal.event(step, "balance", text)
            parts.journal.say(f"step {step}: {text}")

    def observe(self, times: list[Own], micro: int, notes: dict[str, float]) -> Shares:
        """Take in what every rank's last step took, and set the shares of the next; returns the last ones, and tells of them in `notes`."""
        before, seconds = self.shares, self._seconds(times)
        self._busy.append([own.busy for own in times])
        each = [took / share for took, share in zip(seconds, before)]
        notes |= {"share_min": min(before) * self._parts, "share_max": max(before) * self._parts, "imbalance": imbalance(seconds)}
        if self.pace.known:
            notes["imbalance_predicted"] = imbalance([s * n for s, n in zip(self.pace.seconds, before)])
        if self._skip:
            self._skip -= 1
        else:
            self.pace.observe(each)
        if self.pace.known:
            self.shares = next_shares(self.pace.seconds, before, self.rules(micro))
        return before

    def _forget(self) -> None:
        self.pace, self._skip = Pace(self.replicas), WARM_UP
        self._busy: deque[list[float]] = deque(maxlen=WINDOW)  # of every rank, in the last steps

    def _seconds(self, times: list[Own]) -> list[float]:
        """What the step took each replica."""
        of = [[own for own, replica in zip(times, self.replica_of) if replica == r] for r in range(self.replicas)]
        return [max(1e-9, max(own.busy for own in ranks) + min(own.inner for own in ranks)) for ranks in of]

    def _exchange(self, own: Own) -> list[Own]:
        """Every rank's times, on every rank."""
        table = torch.zeros(self._world.size, 2, dtype=torch.float64, device=self._world.device)
        table[self._world.rank] = torch.tensor(own, dtype=torch.float64)
        return [Own(*row) for row in self._world.sum_(table, "balance").tolist()]

    def _words(self, before: Shares) -> str:
        """What has changed, and because of whom."""
        seconds, total = self.pace.seconds, self._sequences * self._parts
        usual = median_low(seconds)
        if self.shares == self.even:
            back, each = min(range(self.replicas), key=before.__getitem__), self.even[0] * self._parts
            return f"{self._name(back)} has caught up; every share is {each} of {total} sequences again, instead of {self._of(before)}"
        odd = max(range(self.replicas), key=lambda r: max(seconds[r] / usual, usual / seconds[r]))
        factor = seconds[odd] / usual
        how = f"{factor:.1f} times slower" if factor >= 1 else f"{1 / factor:.1f} times faster"
        gain = 1 - step_seconds(seconds, self.shares) / step_seconds(seconds, before)
        return (
            f"{self._name(odd)} is {how} than the median; its share of {total} sequences goes from {before[odd] * self._parts} to "
            f"{self.shares[odd] * self._parts}, all shares to {self._of(self.shares)}, by prediction {gain:.0%} less time a step"
        )

    def _name(self, replica: int) -> str:
        """The rank by which a replica is as slow as it is: lately its busiest."""
        usual = [median_low(busy) for busy in zip(*self._busy)]
        rank = max((rank for rank, where in enumerate(self.replica_of) if where == replica), key=usual.__getitem__)
        return f"rank {rank} on host {self._hosts[rank]}"

    def _of(self, shares: Shares) -> str:
        """Shares in words, of many only the range."""
        sequences = [share * self._parts for share in shares]
        return "/".join(map(str, sequences)) if len(shares) <= MOST_NAMED else f"{min(sequences)} to {max(sequences)}"


def hosts(world: World) -> list[str]:
    """The name of every rank's host; all ranks must call it."""
    name = socket.gethostname().encode()[:HOST_BYTES]
    row = torch.tensor(list(name.ljust(HOST_BYTES, b"\0")), dtype=torch.uint8, device=world.device)
    names = world.axis.all_gather(row, 0, "hosts").view(world.size, HOST_BYTES).tolist()
    return [bytes(codes).rstrip(b"\0").decode(errors="replace") for codes in names]
