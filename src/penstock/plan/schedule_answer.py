"""What `penstock schedule` is asked and answers: a schedule made, loaded, compared or read off a timeline; printed, drawn and written."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from penstock.config import ConfigError, UserError, nearest
from penstock.parallel.pipeline.draw import stacked_svg
from penstock.parallel.pipeline.kinds import KINDS
from penstock.parallel.pipeline.schedule import Costs
from penstock.parallel.pipeline.timeline import Timeline, timeline_of
from penstock.parallel.pipeline.torch_ir import read_csv, to_csv
from penstock.parallel.pipeline.trace import read_trace, write_trace
from penstock.plan.schedule import AUTO, Outcome, Pipeline, compare, outcome_of, replan, solve
from penstock.plan.schedule_text import comparison_text, costs_text, executed_text, outcome_text
from penstock.plan.stage_costs import Share, parse_costs, read_costs

ALL = "all"
EVEN = "1,1,1,0"
_OPTIONS = {
    "load": "--load", "stage_costs": "--per-stage-costs", "costs": "--costs",
    "ranks": "--stages", "micro_batches": "--micro-batches", "chunks": "--chunks",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """The command's options; 0 and None are those not given."""

    ranks: int
    micro_batches: int
    kind: str
    chunks: int
    costs: str | None
    stage_costs: Path | None
    memory: float | None
    barrier: bool
    load: Path | None
    timeline: Path | None


@dataclass(frozen=True)
class Answer:
    """The schedule asked for; where kinds are compared, all of them and why others are not there; the timeline it should replace."""

    outcome: Outcome
    compared: list[Outcome] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    executed: Timeline | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the outcome's figures; `kinds` and `refused`, or `executed` and `costs`, where there are such."""
        result = self.outcome.as_dict()
        if self.compared:
            result |= {"kinds": [outcome.as_dict() for outcome in self.compared], "refused": self.refused}
        if self.executed is not None:
            done = self.executed
            result["executed"] = {"kind": done.kind, "bubble": done.bubble, "makespan": done.makespan_s / done.steps, "first_step": done.first_step}
            result["costs"] = asdict(self.outcome.costs)
        return result

    def text(self) -> str:
        """For people."""
        if self.compared:
            return comparison_text(self.compared, self.refused)
        if self.executed is None:
            return outcome_text(self.outcome)
        parts = executed_text(self.executed), costs_text(self.outcome.costs), "", "with these costs it should have been", outcome_text(self.outcome)
        return "\n".join(parts)


def answer(asked: Asked) -> Answer:
    """Do what is asked; raises `UserError` for options, files and numbers that do not go together."""
    if asked.memory is not None and not 0 < asked.memory < float("inf"):
        raise ConfigError(f"--memory {asked.memory} is no cap; give a multiple of 1F1B's activations above 0")
    if asked.timeline is not None:
        _refuse_beside("--from", asked, "load", "stage_costs", "costs", "ranks", "micro_batches", "chunks")
        executed = read_trace(asked.timeline)
        return Answer(replan(executed, asked.memory, asked.barrier), executed=executed)
    if asked.load is not None:
        _refuse_beside("--load", asked, "ranks", "micro_batches", "chunks")
        schedule = read_csv(asked.load)
        pipeline = Pipeline(schedule.ranks, schedule.micro_batches, _costs(asked, schedule.ranks), asked.memory, asked.barrier)
        return Answer(outcome_of(schedule.kind, schedule, pipeline, time.perf_counter()))
    for option, value in (("--stages", asked.ranks), ("--micro-batches", asked.micro_batches)):
        if value < 1:
            mend = f"{option} is {value}; give it 1 or more" if value else f"give {option}, or a schedule with --load, or a timeline with --from"
            raise ConfigError(mend)
    kinds = (AUTO, ALL, *KINDS)
    if asked.kind not in kinds:
        raise ConfigError(f"--kind {asked.kind} is none of {', '.join(kinds)}{nearest(asked.kind, kinds)}")
    pipeline = Pipeline(asked.ranks, asked.micro_batches, _costs(asked, asked.ranks), asked.memory, asked.barrier)
    if asked.kind != ALL:
        return Answer(solve(pipeline, asked.kind, asked.chunks))
    compared, refused = compare(pipeline)
    return Answer(min(compared, key=lambda outcome: outcome.step), compared, refused)


def write(found: Answer, svg: Path | None, trace: Path | None, csv: Path | None) -> list[Path]:
    """Write the files asked for, and return them; a picture of an executed timeline shows it above what it should have been."""
    outcome = found.outcome
    timeline = timeline_of(outcome.schedule, outcome.timing)
    if svg is not None:
        if found.executed is None:
            text = stacked_svg([(timeline, "")], unit="")
        else:
            text = stacked_svg([(found.executed, ""), (timeline, "")])
        _save(svg, text)
    if trace is not None:
        write_trace(timeline, trace)
    if csv is not None:
        _save(csv, to_csv(outcome.schedule))
    return [path for path in (svg, trace, csv) if path is not None]


def _costs(asked: Asked, ranks: int) -> Share | Costs:
    if asked.stage_costs is None:
        return parse_costs(asked.costs or EVEN)
    if asked.costs is not None:
        raise ConfigError("--costs and --per-stage-costs both give costs; give one of them")
    return read_costs(asked.stage_costs, ranks)


def _refuse_beside(option: str, asked: Asked, *others: str) -> None:
    """Raise `ConfigError` if something is given that `option` brings with it."""
    for name in others:
        if getattr(asked, name):
            raise ConfigError(f"{option} tells {_OPTIONS[name]} by itself; leave {_OPTIONS[name]} out")


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from None
