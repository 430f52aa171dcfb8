"""What a layout comes to on a machine of nodes: where its axes lie, and what every rank will send and hold.

Ranks are numbered node by node, `ranks_per_node` of them on each. An axis whose groups all lie inside a node talks over the node's own links; of one
that crosses, the share of its ring's hops (of an all-to-all: of its pairs) that leave a node is counted as sent between nodes, on average over the
ranks, rings being in order of rank. Figures come from `parallel/cost/estimate.py` and `footprint.py`, for a rank whose parts are never the short
ones: the first of all, or of a pipeline's ranks the one that holds most and the one that sends most.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from penstock.config import Config, ConfigError, OptimSection
from penstock.models import count_parameters
from penstock.parallel import Layout, build_layout, check_layout, said_nodes
from penstock.parallel.cost.estimate import muon_traffic, placements, step_traffic
from penstock.parallel.cost.traffic import Collective, Workload
from penstock.parallel.layout import TENSOR
from penstock.parallel.pipeline.plan import PipelinePlan
from penstock.parallel.tensor.topology import Choice, tensor_grids
from penstock.plan.footprint import Footprint, footprint, uses_muon
from penstock.plan.pipeline import FORMATS, first_size, make_plan, micro_batches

AXES = ("pipeline", "node", "replicate", "shard", "context", "expert", *TENSOR)


@dataclass(frozen=True)
class AxisPlace:
    """An axis of more than one rank: the distance between neighbours, and the nodes one of its groups reaches over."""

    name: str
    size: int
    stride: int
    nodes: int


@dataclass(frozen=True)
class Traffic:
    """What a rank sends under one name of the meter in a step, inside nodes and between them."""

    name: str
    inside: int
    between: int


@dataclass(frozen=True)
class PipelineReport:
    """A pipeline's schedule by estimated costs: the layers of every stage and its place, the idle share of a step, and places that stand out."""

    schedule: str
    layers: tuple[int, ...]
    rank_of: tuple[int, ...]
    bubble: float
    #: Most micro-batches that a place holds, each counted as its share of the model; 1F1B's first holds as many as there are places.
    peak_activations: float
    #: The place that the report's memory is of, and the one that its traffic is of.
    holds_most: int
    sends_most: int


@dataclass(frozen=True)
class LayoutReport:
    """A layout's axes, traffic and memory; `better`, another grid of the tensor ranks that sends less, and the share of the bytes it saves."""

    layout: Layout
    ranks_per_node: int
    parameters: int
    compute: str
    micro: int
    micro_batches: int
    axes: tuple[AxisPlace, ...]
    traffic: tuple[Traffic, ...]
    memory: Footprint
    better: Layout | None
    saved: float
    pipeline: PipelineReport | None = None

    @property
    def inside(self) -> int:
        """Bytes a rank sends in a step that stay inside nodes."""
        return sum(line.inside for line in self.traffic)

    @property
    def between(self) -> int:
        """Bytes a rank sends in a step that leave its node."""
        return sum(line.between for line in self.traffic)

    def as_dict(self) -> dict[str, Any]:
        """For `penstock layout --json`."""
        better = None if self.better is None else {"layout": self.better.as_dict(), "settings": grid_settings(self.better), "saved": self.saved}
        return {
            "layout": self.layout.as_dict(),
            "ranks_per_node": self.ranks_per_node,
            "parameters": self.parameters,
            "compute": self.compute,
            "micro": self.micro,
            "micro_batches": self.micro_batches,
            "axes": [asdict(axis) for axis in self.axes],
            "traffic": {line.name: {"bytes": line.inside + line.between, "inside": line.inside, "between": line.between} for line in self.traffic},
            "inside": self.inside,
            "between": self.between,
            "memory": self.memory.as_dict(),
            "pipeline": None if self.pipeline is None else asdict(self.pipeline),
            "better": better,
        }


def describe_layout(config: Config, ranks: int, ranks_per_node: int) -> LayoutReport:
    """Report on `config`, whose model, format and loss chunk are settled, on so many ranks; raises `ConfigError` where they cannot be laid out.

    Nodes that `exchange.topology` gives by hand count instead of `ranks_per_node`. What `exchange.kind` sends between nodes is estimated.
    """
    if ranks < 1 or ranks_per_node < 1:
        raise ConfigError(f"--nproc {ranks} and --ranks-per-node {ranks_per_node} must be at least 1")
    if said := max(said_nodes(config, ranks), default=0):
        ranks_per_node = ranks // (said + 1)
    layout = build_layout(config, ranks, [rank // ranks_per_node for rank in range(ranks)])
    check_layout(config, layout)
    plan = make_plan(config, layout, first_size(config, layout)) if layout.pipeline > 1 else None
    works = workloads(config, layout, plan)
    choice = better_grid(config, layout, plan)
    lines = [planned_traffic(config, work) for work in works]
    sent = [sum(line.sent(layout) for line in of_rank) for of_rank in lines]
    most = sent.index(max(sent))
    fullest, memory = heaviest(works, config.optim)
    return LayoutReport(
        layout=layout,
        ranks_per_node=ranks_per_node,
        parameters=count_parameters(config.model)["total"],
        compute=config.precision.compute,
        micro=works[0].micro,
        micro_batches=works[0].micro_batches,
        axes=tuple(_place(layout, axis, ranks_per_node) for axis in _split_axes(layout)),
        traffic=_traffic(lines[most], layout, ranks_per_node),
        memory=memory,
        better=None if choice is None else choice.layout,
        saved=0.0 if choice is None else 1.0 - choice.n_bytes / sent[most],
        pipeline=None if plan is None else _pipeline(plan, fullest.place, most),
    )


def workloads(config: Config, layout: Layout, plan: PipelinePlan | None = None) -> list[Workload]:
    """The step that a settled `config` makes on `layout`, of the first rank of every place of its pipeline; `plan` is made if it is not given."""
    first = workload(config, layout)
    if layout.pipeline == 1:
        return [first]
    plan = plan or make_plan(config, layout, first.micro)
    stride = layout.stride("pipeline")
    return [replace(first, rank=place * stride, stages=plan.stages, schedule=plan.schedule) for place in range(layout.pipeline)]


def heaviest(works: list[Workload], optim: OptimSection) -> tuple[Workload, Footprint]:
    """The rank that holds most, and what."""
    held = [(work, footprint(work, optim)) for work in works]
    return max(held, key=lambda pair: pair[1].total)


def workload(config: Config, layout: Layout) -> Workload:
    """The step of rank 0 that a settled `config` makes on `layout`, if it has all layers."""
    compute, master = FORMATS[config.precision.compute]
    micro = first_size(config, layout)
    return Workload(
        model=config.model,
        layout=layout,
        micro=micro,
        micro_batches=micro_batches(config, layout, micro),
        compute=compute,
        master=master,
        chunk_tokens=config.train.loss_chunk,
        documents=config.data.document_mask,
        bucket_mb=config.layout.bucket_mb,
        exchange=config.exchange,
    )


def planned_traffic(config: Config, work: Workload) -> list[Collective]:
    """Every collective of a step, the optimizer's included."""
    matrices = [name for name, placement in placements(work).items() if uses_muon(name, placement, config.optim)]
    return step_traffic(work) + muon_traffic(work, matrices)


def better_grid(config: Config, layout: Layout, plan: PipelinePlan | None = None) -> Choice | None:
    """Another grid of the same tensor ranks with which the rank that sends most in a step sends least, if it is less than with `layout`."""
    choices = []
    for grid in [layout, *tensor_grids(layout)] if layout.tensor > 1 else []:
        try:
            check_layout(config, grid)
        except ConfigError:
            continue
        works = workloads(config, grid, plan)
        choices.append(Choice(grid, max(sum(line.sent(grid) for line in planned_traffic(config, work)) for work in works)))
    best = min(choices, key=lambda choice: choice.n_bytes, default=None)
    return None if best is None or best.layout == layout else best


def grid_settings(layout: Layout) -> dict[str, str]:
    """The settings that choose the grid of `layout`."""
    grid = {"1d": "", "2d": f"{layout.column}x{layout.row}", "2.5d": f"{layout.row}x{layout.column}x{layout.depth}"}[layout.topology]
    return {"layout.tensor_topology": layout.topology, "layout.tensor_grid": grid}


def _pipeline(plan: PipelinePlan, holds_most: int, sends_most: int) -> PipelineReport:
    layers = tuple(len(part.layers) for part in plan.stages.parts)
    return PipelineReport(
        plan.schedule.kind, layers, plan.stages.rank_of, plan.timing.bubble, max(plan.timing.peak_memory), holds_most, sends_most
    )  # fmt: skip


def _split_axes(layout: Layout) -> list[str]:
    return [axis for axis in AXES if layout.size(axis) > 1]


def _place(layout: Layout, axis: str, per_node: int) -> AxisPlace:
    groups = {layout.group(rank, (axis,)) for rank in range(layout.ranks)}
    nodes = max(len({rank // per_node for rank in group}) for group in groups)
    return AxisPlace(axis, layout.size(axis), layout.stride(axis), nodes)


def _traffic(lines: list[Collective], layout: Layout, per_node: int) -> tuple[Traffic, ...]:
    table: dict[str, Traffic] = {}
    shares: dict[tuple[tuple[str, ...], bool, int], float] = {}
    for line in lines:
        sent, name, key = line.sent(layout), line.name(layout), (line.axes, line.operation == "all_to_all", line.tied)
        if not sent:
            continue
        if key not in shares:
            axes = ("pipeline", *line.axes) if line.tied > 1 else line.axes
            shares[key] = _crossing(layout, axes, per_node, all_pairs=key[1])
        between, old = round(sent * shares[key]), table.get(name, Traffic(name, 0, 0))
        table[name] = Traffic(name, old.inside + sent - between, old.between + between)
    return tuple(sorted(table.values(), key=lambda line: -line.inside - line.between))


def _crossing(layout: Layout, axes: tuple[str, ...], per_node: int, all_pairs: bool) -> float:
    """Share of an exchange over `axes` that leaves a node, on average over all ranks."""
    crossed = counted = 0
    for group in {layout.group(rank, axes) for rank in range(layout.ranks)}:
        nodes = [rank // per_node for rank in group]
        pairs = [(a, b) for a in nodes for b in nodes] if all_pairs else list(zip(nodes, nodes[1:] + nodes[:1]))
        crossed += sum(a != b for a, b in pairs)
        counted += len(pairs) - (len(nodes) if all_pairs else 0)
    return crossed / counted


def layout_text(report: LayoutReport) -> str:
    """The report as aligned lines for people."""
    layout, per_node = report.layout, report.ranks_per_node
    lines = [
        f"{layout.ranks} ranks, {min(per_node, layout.ranks)} a node: {layout}",
        f"{report.parameters:,} parameters, {report.compute}, {report.micro_batches} × {report.micro} sequences a rank and step",
        *([] if report.pipeline is None else _pipeline_text(report.pipeline)),
        "",
        *_table([("axis", "ranks", "stride", "lies"), *((a.name, str(a.size), str(a.stride), _where(a)) for a in report.axes)], left=(0, 3)),
        "",
        *_table(
            [
                ("a rank sends in a step", "inside nodes", "between nodes"),
                *((line.name, _bytes(line.inside), _bytes(line.between)) for line in report.traffic),
                ("together", _bytes(report.inside), _bytes(report.between)),
            ],
            left=(0,),
        ),
        "",
        *_table([("a rank holds", "memory"), *((name, _bytes(n)) for name, n in report.memory.as_dict().items() if n)], left=(0,)),
    ]
    return "\n".join([*lines, *_advice(report)])


def _pipeline_text(pipeline: PipelineReport) -> list[str]:
    alike = [(len(list(group)), layers) for layers, group in groupby(pipeline.layers)]
    layers = ", ".join(f"{times} × {layers}" if times > 2 else ", ".join([str(layers)] * times) for times, layers in alike)
    return [
        f"pipeline {pipeline.schedule}: {pipeline.bubble:.1%} idle by estimate; layers by stage: {layers}",
        f"below, place {pipeline.sends_most} of the pipeline, which sends most, and place {pipeline.holds_most}, which holds most",
    ]


def _advice(report: LayoutReport) -> list[str]:
    far = [axis.name for axis in report.axes if axis.nodes > 1 and axis.name in (*TENSOR, "expert")]
    wait = "every layer waits for what they send; smaller axes would stay inside one"
    lines = [f"over several nodes: {', '.join(far)}; {wait}"] if far else []
    if report.better is not None:
        settings = " ".join(f"--set {name}={value}" for name, value in grid_settings(report.better).items())
        shape = f"{report.better.topology} {grid_settings(report.better)['layout.tensor_grid']}".strip()
        lines.append(f"{shape} would send {report.saved:.0%} less: {settings}")
    return ["", *lines] if lines else []


def _where(axis: AxisPlace) -> str:
    return "inside a node" if axis.nodes == 1 else f"over {axis.nodes} nodes"


def _table(rows: list[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows]


def _bytes(n: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B" if n else "–"
