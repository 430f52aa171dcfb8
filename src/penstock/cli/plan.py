"""What is known before a run: `penstock config`, `layout`, `schedule`, and `verify`, which proves layouts equal.

As in `app.py`, commands parse, call and print.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from penstock.cli import output
from penstock.cli.options import ConfigFile, Json, Sets


def verify(
    config: ConfigFile = None,
    sets: Sets = None,
    layouts: Annotated[str, typer.Option("--layouts", help="'all', or one axis: replicate, shard, context, tensor or expert.")] = "all",
    nproc: Annotated[int, typer.Option("--nproc", help="Most ranks a layout may take.")] = 8,
    full: Annotated[bool, typer.Option("--full", help="Check the model at its own size, not a shrunken one of the same structure.")] = False,
    json: Json = False,
) -> None:
    """Hold every parallel layout of a model against one plain process, in float64: loss, gradients, their norm, 20 steps."""
    from penstock.config import load_config

    settings = load_config(config, sets or [])
    from penstock.lab import table, verify

    results = verify(settings, layouts, nproc, full, lambda line: print(line, file=sys.stderr, flush=True))
    sorted_by = {key: [r.as_dict() for r in results if r.verdict == verdict] for key, verdict in output.VERDICTS.items()}
    output.show(sorted_by, json, lambda _: table(results))
    if sorted_by["failed"]:
        raise typer.Exit(1)


def layout(
    config: ConfigFile = None,
    sets: Sets = None,
    nproc: Annotated[int, typer.Option("--nproc", help="Ranks to lay out; none is started.")] = 1,
    ranks_per_node: Annotated[int, typer.Option("--ranks-per-node", help="Ranks on each node.")] = 8,
    json: Json = False,
) -> None:
    """Show what a layout will come to on any number of ranks: where its axes lie, bytes sent and memory a rank."""
    from penstock.config import load_config

    settings = load_config(config, sets or [])
    from penstock.engine import outline
    from penstock.plan import describe_layout, layout_text

    report = describe_layout(outline(settings), nproc, ranks_per_node)
    output.show(report.as_dict(), json, lambda _: layout_text(report))


def schedule(
    stages: Annotated[int, typer.Option("--stages", help="Ranks of the pipeline.")] = 0,
    micro_batches: Annotated[int, typer.Option("--micro-batches", help="Micro-batches in a step.")] = 0,
    kind: Annotated[str, typer.Option("--kind", help="auto: the best that is found; all: compare kinds; or one of their names.")] = "auto",
    chunks: Annotated[int, typer.Option("--chunks", help="Stages of the model on each rank; 0: as the kind has it.")] = 0,
    costs: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--costs", metavar="F,I,W,HOP", help="Times of a rank's forward, input and weight gradient, and of a transfer; none: 1,1,1,0."),
    ] = None,
    stage_costs: Annotated[Optional[Path], typer.Option("--per-stage-costs", metavar="FILE.json", help="Every stage's times instead.")] = None,  # noqa: UP045
    memory: Annotated[Optional[float], typer.Option("--memory", help="Most activations, as a multiple of 1F1B's; none: 1 for auto.")] = None,  # noqa: UP045
    no_barrier: Annotated[bool, typer.Option("--no-barrier", help="A rank begins its next step without waiting for the others.")] = False,
    load: Annotated[Optional[Path], typer.Option("--load", metavar="FILE.csv", help="Check and time this schedule, in torch's CSV.")] = None,  # noqa: UP045
    trace_from: Annotated[Optional[Path], typer.Option("--from", metavar="TRACE.json", help="What this timeline should have been.")] = None,  # noqa: UP045
    svg: Annotated[Optional[Path], typer.Option("--svg", help="Draw it.")] = None,  # noqa: UP045
    trace: Annotated[Optional[Path], typer.Option("--trace", help="Write its timeline for ui.perfetto.dev.")] = None,  # noqa: UP045
    csv: Annotated[Optional[Path], typer.Option("--csv", help="Write it as torch's CSV.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """Make, check, time and draw a pipeline's schedule: the best for given costs and memory, a named kind, or one loaded."""
    from penstock.plan.schedule_answer import Asked, answer, write

    asked = Asked(stages, micro_batches, kind, chunks, costs, stage_costs, memory, not no_barrier, load, trace_from)
    found = answer(asked)
    for path in write(found, svg, trace, csv):
        print(f"wrote {path}", file=sys.stderr)
    output.show(found.as_dict(), json, lambda _: found.text())


def config_(
    config: ConfigFile = None,
    sets: Sets = None,
    explain: Annotated[Optional[str], typer.Option("--explain", metavar="SECTION[.KEY]", help="What a setting means.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """Print every setting, resolved; or what one means."""
    from penstock import config as settings

    if explain is not None:
        text = settings.explain(explain)
        output.show({"explain": text}, json, lambda _: text)
        return
    resolved = settings.load_config(config, sets or [])
    output.show(resolved.tree(), json, lambda _: settings.to_toml(resolved).rstrip())
