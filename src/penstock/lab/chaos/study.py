"""`penstock chaos`: the user's own command with faults planted in it, held against the same command left alone.

    the command, undisturbed                → the final weights that count
    the command under a plan of faults      → as many runs as it takes (`plan.py`, `runs.py`)
    each fault                              → what was done about it, and whether the run survived it (`verdict.py`)

Ranks are watched over in all of these (`survive.enabled = "on"`); what takes a lost rank's place is the command's to say (`survive.replace`). All is
kept in one folder: `reference/`, `run-1/`, …, each with its run, its log and the marks of its faults; and `verdict.json`.

Cost: the command's time once for the reference, and again for every run of faults, each with its recoveries. When not to use it: on a command whose
runs follow measured times, which no two runs do alike; it is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from typing import Any

from penstock.config import Config, UserError, flat, load_config
from penstock.engine import MEASURED, check_ranks, check_world, cores
from penstock.lab.chaos.kinds import KINDS
from penstock.lab.chaos.plan import Fault, Plan, make_plan
from penstock.lab.chaos.runs import Command, Ended, Limits, run_with_faults
from penstock.lab.chaos.verdict import Judged, Weights, judge, weigh
from penstock.lab.namespaces import ended_as_interrupted
from penstock.store import new_run_folder

#: A run is held to hang after so many seconds in which nothing happened, or this many times the longest such time of the reference.
PATIENCE_S, USUAL = 120.0, 20.0
#: The reference, of which nothing is known, is given up after so many seconds in which nothing happened.
REFERENCE_S = 1800.0
#: Characters of the history's words in the table.
SHOWN = 72
#: Recoveries that a fault may take, for `survive.most`.
RECOVERIES = 6


@dataclass(frozen=True)
class ChaosResult:
    """The faults, what became of them, and the runs they were in."""

    folder: Path
    command: Command
    config: Config
    seed: int
    reference: Ended
    runs: tuple[tuple[Ended, Weights], ...]
    faults: tuple[Judged, ...]
    skipped: dict[str, str]

    @property
    def counted(self) -> list[Judged]:
        """Those that could strike."""
        return [judged for judged in self.faults if not judged.skipped]

    @property
    def survived(self) -> bool:
        """Whether every fault was, and there was one."""
        return bool(self.counted) and all(judged.survived for judged in self.counted)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: seconds, steps; `relative` is ‖difference‖ / ‖weights‖ of the tensor furthest from the reference's."""
        runs = [
            {"run": str(ended.run), "same_weights": weights.same, "relative": weights.relative if weights.relative < float("inf") else None,
             "right": weights.right, "defect": ended.defect, "seconds": ended.seconds, "resumed": ended.resumed}
            for ended, weights in self.runs
        ]  # fmt: skip
        reference = {"run": str(self.reference.run), "weights_digest": self.reference.summary["weights_digest"], "seconds": self.reference.seconds}
        return {
            "folder": str(self.folder), "seed": self.seed, "ranks": self.command.ranks, "replace": self.config.survive.replace,
            "steps": self.config.train.steps, "reference": reference, "runs": runs, "faults": [judged.as_dict() for judged in self.faults],
            "kinds": dict(Counter(judged.fault.kind for judged in self.counted)), "skipped": self.skipped,
            "survived": sum(judged.survived for judged in self.counted), "of": len(self.counted),
        }  # fmt: skip

    def text(self) -> str:
        """A table of the faults, a line for each run, and the verdict."""
        cells = [["fault", "kind", "step", "phase", "rank", "seconds", "again", "what was done", "told", ""]]
        cells += [_cells(judged) for judged in self.faults]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells] + [""]
        for number, (ended, weights) in enumerate(self.runs, 1):
            lines.append(f"run {number}: {ended.defect or weights.text()}; {ended.seconds:.0f} s, resumed {ended.resumed} times")
        lines += [f"skipped {name}: {why}" for name, why in self.skipped.items()]
        told = self.as_dict()
        kinds = f"{len(told['kinds'])} kind{'s' * (len(told['kinds']) != 1)}"
        lines += [f"all of it is in {self.folder}", f"survived {told['survived']} of {told['of']} faults of {kinds}, seed {self.seed}"]
        return "\n".join(lines)


def run_chaos(command: Command, folder: Path | None, faults: int, seed: int, kinds: Sequence[str], say: Callable[[str], None]) -> ChaosResult:
    """Run a command undisturbed and under faults; raises `UserError` for one that will not do, or that does not even run undisturbed."""
    config = checked(command)
    plan = make_plan(config, command.ranks, faults, seed, kinds)
    most = max(config.survive.most, RECOVERIES * max(map(len, plan.runs)))
    command = Command(command.config, (*command.sets, "survive.enabled=on", f"survive.most={most}"), command.ranks)
    folder = (folder or new_run_folder(config, "chaos")).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another folder with --run-dir")
    say(f"{folder}: the command undisturbed, then {faults} faults in {len(plan.runs)} run{'s' * (len(plan.runs) > 1)}, seed {seed}")
    with ended_as_interrupted():
        reference = run_with_faults(command, folder / "reference", (), Limits(REFERENCE_S, float("inf")), say)
        if reference.defect:
            raise UserError(f"the command does not run undisturbed: {reference.defect} (its log is {folder / 'reference' / 'log.txt'})")
        ended, judged = _under_faults(command, config, folder, plan, reference, say)
    result = ChaosResult(folder, command, config, seed, reference, tuple(ended), tuple(judged), plan.skipped)
    (folder / "verdict.json").write_text(json.dumps(result.as_dict(), indent=1), encoding="utf-8")
    return result


def checked(command: Command) -> Config:
    """The command's config; raises `UserError` unless it makes runs of several ranks that are the same each time."""
    config = load_config(command.config, list(command.sets))
    if command.ranks < 2:
        raise UserError(f"--nproc {command.ranks}: one rank has nobody to be survived by; train with --nproc 2 or more")
    check_ranks(command.ranks, config.run.device, cores())
    check_world(config, command.ranks)
    settings = flat(config)
    for name, values in MEASURED.items():
        if settings[name] in values:
            raise UserError(f"{name} = {settings[name]!r} follows measured times, so no two runs are the same; give it a fixed value with --set")
    return config


def _under_faults(
    command: Command, config: Config, folder: Path, plan: Plan, reference: Ended, say: Callable[[str], None]
) -> tuple[list[tuple[Ended, Weights]], list[Judged]]:
    """All runs of the plan. What a run leaves over goes to another: faults beside the one that ended it, or that found too few snapshots."""
    patience_s = max(PATIENCE_S, USUAL * _longest_gap(reference), 6 * config.survive.patience_s)
    runs: list[tuple[Ended, Weights]] = []
    judged: list[Judged] = []
    left = list(plan.runs)
    while left:
        faults, number = left.pop(0), len(runs) + 1
        say(f"run {number}: {len(faults)} fault{'s' * (len(faults) != 1)}")
        limits = Limits(patience_s, USUAL * reference.seconds + patience_s * (1 + len(faults)))
        ended = run_with_faults(command, folder / f"run-{number}", faults, limits, say)
        exactly = config.survive.replace != "none" or not any(KINDS[fault.kind].loses for fault in faults)
        weights = weigh(ended, reference, exactly) if not ended.defect else Weights(False, float("inf"), False)
        say(f"run {number}: {ended.defect or weights.text()}")
        runs.append((ended, weights))
        over = _left_over(ended, faults)
        judged += judge(number, [fault for fault in faults if fault not in over], ended, weights)
        if over:
            left.insert(0, over)
    return runs, sorted(judged, key=lambda found: found.fault.number)


def _left_over(ended: Ended, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Faults of a run of which another can tell more: never all of them."""
    if ended.defect:
        guilty = ended.last_struck(faults)
        return tuple(fault for fault in faults if fault is not guilty) if guilty else ()
    skipped = tuple(fault for fault in faults if ended.marks.get(str(fault.number), {}).get("skipped"))
    return skipped if len(skipped) < len(faults) else ()


def _longest_gap(ended: Ended) -> float:
    """The longest time, seconds, between two steps of a run."""
    return max((after - before for before, after in pairwise(ended.times)), default=0.0)


def _cells(judged: Judged) -> list[str]:
    fault = judged.fault
    rank = f"{fault.rank}" if fault.other < 0 and not fault.then else f"{fault.rank}, {fault.other if fault.other >= 0 else 'new'}"
    verdict = "skipped" if judged.skipped else "survived" if judged.survived else "NOT SURVIVED"
    verdict += f": {judged.why}" if judged.why else ""
    seen = [f"{judged.seconds:.2f}", str(judged.again)] if judged.struck else ["–", "–"]
    told = "yes" if judged.told and KINDS[fault.kind].tells else "–" if judged.told or not judged.struck else "NO"
    return [str(fault.number), fault.kind, str(fault.step), fault.phase, rank, *seen, shorten(judged.how, SHOWN, placeholder=" …"), told, verdict]
