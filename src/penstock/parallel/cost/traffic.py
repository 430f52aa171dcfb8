"""What collectives a step calls, as data: the words in which the estimates of this room are written.

A `Collective` is one line of an estimate: over which axes, for which purpose, on how many bytes, how often. It counts as the meter counts
(`comm/meter.py`): the same names, the same ring formulas, rounded call by call, so a sum of them equals a run's count to the byte.
A `Workload` holds what the lines are made from; nothing here needs a process group, a tensor or a machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from penstock.comm import ring_bytes
from penstock.config import ExchangeSection, ModelSection
from penstock.parallel.layout import Layout
from penstock.parallel.pipeline.schedule import Schedule
from penstock.parallel.pipeline.stages import Stages
from penstock.parallel.placement import padded_part

EXPERT_COUNT_BYTES = TOKEN_BYTES = 8  # int64
DOCUMENT_BYTES = 4  # int32


@dataclass(frozen=True)
class Workload:
    """One rank's optimizer step: the resolved model, the layout, and how the work is cut.

    `micro` sequences at a time, `micro_batches` times; activations of `compute` bytes and weights, moments and gradients of `master` bytes a
    number; the loss in chunks of `chunk_tokens`; `documents` says that tokens carry their document's number; buckets of `bucket_mb` MiB.
    In a pipeline, which `stages` there are and how they are scheduled. How gradients travel between nodes.
    """

    model: ModelSection
    layout: Layout
    micro: int
    micro_batches: int = 1
    compute: int = 4
    master: int = 4
    chunk_tokens: int = 1 << 40
    documents: bool = False
    bucket_mb: float = 25.0
    rank: int = 0
    stages: Stages | None = None
    schedule: Schedule | None = None
    exchange: ExchangeSection = field(default_factory=ExchangeSection)

    @property
    def place(self) -> int:
        """The rank's place on the pipeline."""
        return self.layout.coordinate(self.rank, "pipeline")

    @property
    def own_stages(self) -> dict[int, tuple[int, ...]]:
        """The rank's stages by number, with the layers of each; without a pipeline one stage of all layers."""
        if self.stages is None:
            return {0: tuple(range(self.model.layers))}
        placed = enumerate(zip(self.stages.parts, self.stages.rank_of))
        return {stage: tuple(part.layers) for stage, (part, place) in placed if place == self.place}

    @property
    def layers(self) -> list[int]:
        """Layers that the rank has."""
        return [layer for layers in self.own_stages.values() for layer in layers]

    @property
    def embeds(self) -> bool:
        """Whether the rank embeds tokens."""
        return self.stages is None or self.stages.rank_of[0] == self.place

    @property
    def ends(self) -> bool:
        """Whether the rank has norm, head and loss."""
        return self.stages is None or self.stages.rank_of[-1] == self.place

    @property
    def hops(self) -> int:
        """Tensors that the rank sends along the pipeline for a micro-batch: activations onward and gradients back."""
        return 0 if self.stages is None else sum(a != b and self.place in (a, b) for a, b in pairwise(self.stages.rank_of))

    @property
    def stream_bytes(self) -> int:
        """What the rank holds of a micro-batch between blocks."""
        rows = 1 if self.layout.topology == "2.5d" else self.layout.row
        return self.tokens // rows * self.part(self.model.dim, "column") * self.compute

    @property
    def wide(self) -> int:
        """Bytes of a number where the format is float32 at least."""
        return max(4, self.compute)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch that this rank's tensor group computes: before the rows cut them (1-D, 2-D), or its own (2.5-D)."""
        return self.micro * (self.model.context // self.layout.context)

    @property
    def routed_rows(self) -> int:
        """Rows of a micro-batch that go to experts."""
        return self.tokens * self.model.moe.active

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """Lengths of the loss' chunks of at most `size` of the tokens, each with how often it occurs."""
        whole, rest = divmod(self.tokens, size)
        return [(length, times) for length, times in ((size, whole), (rest, 1)) if length and times]

    def part(self, size: int, axis: str, unit: int = 1) -> int:
        """Length of a full part of a dim cut over an axis."""
        return padded_part(size, self.layout.size(axis), unit)


@dataclass(frozen=True)
class Collective:
    """`times` calls of a collective on a whole tensor of `n_bytes` (of an all-to-all or a send: bytes that leave a rank) over `axes`.

    `tied` ranks of the pipeline take part, where a tensor lies on several (an embedding that is the head too).
    """

    axes: tuple[str, ...]
    purpose: str
    operation: str
    n_bytes: int
    times: int = 1
    tied: int = 1

    def name(self, layout: Layout) -> str:
        """`axis.purpose`, as the meter has it."""
        return f"{axis_name(self.axes, layout, self.tied)}.{self.purpose}"

    def sent(self, layout: Layout) -> int:
        """Bytes one rank sends in all calls."""
        ranks = layout.size(*self.axes) * self.tied
        if ranks == 1:
            return 0
        return self.times * (self.n_bytes if self.operation in ("all_to_all", "send") else ring_bytes(self.operation, self.n_bytes, ranks))

    def repeated(self, times: int) -> Collective:
        """The same, so many times as often."""
        return replace(self, times=self.times * times)


def axis_name(axes: tuple[str, ...], layout: Layout, tied: int = 1) -> str:
    """Name of several axes taken as one: those of more than one rank (`Mesh.axis`, `Mesh.replicas`)."""
    return "_".join((("tied",) if tied > 1 else ()) + tuple(axis for axis in axes if layout.size(axis) > 1)) or "none"


def both_ways(axis: str, purpose: str, operation: str, n_bytes: int, times: int = 1) -> list[Collective]:
    """A differentiable collective over one axis (`comm/differentiable.py`): forward, and its conjugate backward on as many bytes."""
    conjugate = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather"}.get(operation, operation)
    return [Collective((axis,), purpose, operation, n_bytes, times), Collective((axis,), purpose, conjugate, n_bytes, times)]


def bytes_sent(collectives: Iterable[Collective], layout: Layout) -> dict[str, int]:
    """Bytes one rank sends by `axis.purpose`; names that send nothing are left out."""
    table: dict[str, int] = {}
    for collective in collectives:
        sent, name = collective.sent(layout), collective.name(layout)
        if sent:
            table[name] = table.get(name, 0) + sent
    return table
