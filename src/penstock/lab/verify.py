"""`penstock verify`: the equivalence matrix of a model on this host's ranks.

Cases of as many ranks are checked one after another by one set of ranks (`python -m penstock.lab.verify FOLDER` below the launcher), which
takes a tenth of the time of starting them anew. The folder holds the question, `cases.json`, and the answers, one JSON line each.

By default the model is shrunk where that changes no structure: few layers, short sequences, small widths of batch and vocabulary. What is
equal there is equal at size, since layouts know only divisions; `full` checks it as it is.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from penstock.comm import join_world, leave_world
from penstock.config import Config, UserError, with_values
from penstock.engine import check_ranks, cores, die_with_parent, start_ranks
from penstock.lab.cases import AXES, Case, layout_cases
from penstock.lab.equivalence import STEPS, Result, check
from penstock.models import resolve_model

#: Sizes that all cases of up to eight ranks divide.
SEQUENCES, CONTEXT, LAYERS, VOCAB = 24, 48, 2, 397


def verify(config: Config, layouts: str, nproc: int, full: bool, say: Callable[[str], None]) -> list[Result]:
    """Check the layouts called `layouts` ('all', or an axis' name) of the model of `config` on up to `nproc` ranks; `say` gets a line a case."""
    check_ranks(nproc, "cpu", cores())
    config = question(config, full)
    cases = [case for case in layout_cases(nproc, config.model.moe.experts > 0) if wanted(case, layouts)]
    if not cases:
        raise UserError(f"--layouts {layouts} with --nproc {nproc} leaves no case to check; start more ranks, or check 'all'")
    results: list[Result] = []
    for ranks in sorted({case.ranks for case in cases}):
        group = [case for case in cases if case.ranks == ranks]
        say(f"{len(group)} layouts of {ranks} ranks")
        results += _on_ranks(config, group, ranks)
    return results


def wanted(case: Case, layouts: str) -> bool:
    """Whether a case is among those called `layouts`; raises `UserError` for a name there is not."""
    if layouts == "all":
        return True
    names = {axis.split()[0] for axis in AXES}
    if layouts not in names:
        raise UserError(f"--layouts {layouts!r} is neither 'all' nor an axis; the axes are {', '.join(sorted(names))}")
    return f"layout.{layouts}" in case.settings


def question(config: Config, full: bool) -> Config:
    """The config to check: float64, eager, on the CPU, with a learning rate that moves the weights from the first step on."""
    values: dict[str, Any] = {
        "precision.compute": "float64", "compile.enabled": "off", "run.device": "cpu", "run.threads": 1, "train.steps": STEPS,
        "optim.warmup": min(2, config.optim.warmup), "batch.global": SEQUENCES, "batch.micro": SEQUENCES, "train.loss_chunk": 101,
    }  # fmt: skip
    if not full:
        layers = min(config.model.layers, max(LAYERS, config.model.moe.first_dense + 1))
        values |= {"model.layers": layers, "model.context": min(config.model.context, CONTEXT), "model.vocab": VOCAB}
    config = with_values(config, values)
    return with_values(config, {"model": resolve_model(config.model, config.model.vocab or config.data.vocab).model_dump(by_alias=True)})


def _on_ranks(config: Config, cases: list[Case], ranks: int) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="penstock-verify-") as name:
        folder = Path(name)
        content = {"config": config.tree(), "cases": [asdict(case) for case in cases]}
        (folder / "cases.json").write_text(json.dumps(content), encoding="utf-8")
        start_ranks("penstock.lab.verify", folder, ranks, 0, "this is a fault of Penstock's; please report it with the traceback")
        lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        return [Result(**json.loads(line)) for line in lines]


def table(results: list[Result]) -> str:
    """The matrix as text: a line a case with its errors relative to the plain process."""
    rows = [f"{'layout':<48} {'with':<44} {'loss':>8} {'gradient':>8} {'norm':>8} {f'{STEPS} steps':>8}  verdict"]
    rows += [_row(result) for result in results]
    count = {verdict: sum(r.verdict == verdict for r in results) for verdict in ("equal", "differs", "refused")}
    rows.append(f"{len(results)} layouts: {count['equal']} equal one plain process, {count['differs']} differ, {count['refused']} refused")
    return "\n".join(rows)


def _row(result: Result) -> str:
    switches = ", ".join(f"{key.split('.', 1)[1]} {value}" for key, value in result.settings.items() if not key.startswith("layout."))
    head = f"{result.name:<48} {switches:<44} "
    if result.verdict == "refused":
        return f"{head}refused: {result.why}"
    errors = " ".join(f"{value:8.0e}" for value in (result.loss, result.gradient, result.norm, result.steps))
    return f"{head}{errors}  {result.verdict}{': ' + result.why if result.why else ''}"


def main(folder: Path) -> int:
    """One rank of a group: check all cases, the lead writing an answer as each is done."""
    die_with_parent()
    torch.set_num_threads(1)
    question = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    config = Config.model_validate(question["config"])
    world = join_world("cpu", config.layout.timeout_s)
    plain: dict[str, Any] = {}
    for case in question["cases"]:
        began = time.perf_counter()
        result = check(world, config, Case(**case), plain)
        if world.is_lead:
            with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(result.as_dict()) + "\n")
            print(f"  {_row(result)}  ({time.perf_counter() - began:.1f} s)", file=sys.stderr, flush=True)
    leave_world(world)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(Path(sys.argv[1])))
