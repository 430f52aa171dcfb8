"""`penstock verify`: the equivalence matrix of a model on this host's ranks.

Cases of as many ranks are checked one after another by one set of ranks (`verify_rank.py` below the launcher), which
takes a tenth of the time of starting them anew. The folder holds the question, `cases.json`, and the answers, one JSON line each.

By default the model is shrunk where that changes no structure: few layers, short sequences, narrow heads and a small vocabulary, but as many heads,
groups and experts. What is equal there is equal at size, since layouts know only divisions; `full` checks it as it is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penstock.config import Config, ModelSection, UserError, with_values
from penstock.engine import check_ranks, cores, start_ranks
from penstock.lab.cases import AXES, Case, layout_cases
from penstock.lab.equivalence import STEPS, Result
from penstock.models import resolve_model

#: Sizes that all cases of up to eight ranks divide, and others that are small.
SEQUENCES, CONTEXT, LAYERS, VOCAB, HEAD_DIM = 24, 48, 2, 397, 8


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
    model = resolve_model(config.model, config.model.vocab or config.data.vocab)
    values: dict[str, Any] = {
        "model": (model if full else shrunken(model)).model_dump(by_alias=True),
        "precision.compute": "float64", "compile.enabled": "off", "run.device": "cpu", "run.threads": 1, "train.steps": STEPS,
        "optim.warmup": min(2, config.optim.warmup), "batch.global": SEQUENCES, "batch.micro": SEQUENCES, "train.loss_chunk": 101,
    }  # fmt: skip
    return with_values(config, values)


def shrunken(model: ModelSection) -> ModelSection:
    """The resolved `model` with few layers and small widths, but as many heads, groups and experts."""
    by = max(1, model.head_dim // HEAD_DIM)
    by = by if model.head_dim % by == 0 and model.dim % by == 0 and model.head_dim // by % 2 == 0 else 1
    moe = model.moe.model_copy(update={"dim": -(-model.moe.dim // by)})
    return model.model_copy(
        update={
            "layers": min(model.layers, max(LAYERS, model.moe.first_dense + 1)),
            "dim": model.dim // by,
            "head_dim": model.head_dim // by,
            "ffn_dim": -(-model.ffn_dim // by),
            "context": min(model.context, CONTEXT),
            "vocab": min(model.vocab, VOCAB),
            "moe": moe,
        }
    )


def _on_ranks(config: Config, cases: list[Case], ranks: int) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="penstock-verify-") as name:
        folder = Path(name)
        content = {"config": config.tree(), "cases": [asdict(case) for case in cases]}
        (folder / "cases.json").write_text(json.dumps(content), encoding="utf-8")
        start_ranks("penstock.lab.verify_rank", folder, ranks, 0, "this is a fault of Penstock's; please report it with the traceback")
        lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        return [Result(**json.loads(line)) for line in lines]


def table(results: list[Result]) -> str:
    """The matrix as text: a line a case with its errors relative to the plain process."""
    lines = [f"{'layout':<48} {'with':<44} {'loss':>8} {'gradient':>8} {'norm':>8} {f'{STEPS} steps':>8}  verdict"]
    lines += [row(result) for result in results]
    count = {verdict: sum(r.verdict == verdict for r in results) for verdict in ("equal", "differs", "refused")}
    lines.append(f"{len(results)} layouts: {count['equal']} equal one plain process, {count['differs']} differ, {count['refused']} refused")
    return "\n".join(lines)


def row(result: Result) -> str:
    """A case's line of the table."""
    switches = ", ".join(f"{key.split('.', 1)[1]} {value}" for key, value in result.settings.items() if not key.startswith("layout."))
    head = f"{result.name:<48} {switches:<44} "
    if result.verdict == "refused":
        return f"{head}refused: {result.why}"
    errors = " ".join(f"{value:8.0e}" for value in (result.loss, result.gradient, result.norm, result.steps))
    return f"{head}{errors}  {result.verdict}{': ' + result.why if result.why else ''}"
