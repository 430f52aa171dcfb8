"""What makes a model, and what uses one: `penstock train`, `resume`, `scale`, `generate`, `eval`, `export`, `import`.

As in `app.py`, commands parse, call and print.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from penstock.cli import output
from penstock.cli.options import ConfigFile, Device, Json, Nproc, RunName, RunsDir, Sets

#: The exit code of a run that was interrupted after a clean snapshot.
INTERRUPTED = 130


def train(
    config: ConfigFile = None,
    sets: Sets = None,
    nproc: Nproc = 1,
    run_dir: Annotated[Optional[Path], typer.Option("--run-dir", help="Folder of the new run; none: runs/<preset>-<time>.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """Train a model: prepare the corpus, train, evaluate, save, report."""
    from penstock.config import load_config

    settings = load_config(config, sets or [])
    from penstock.engine import start_run

    label = Path(config).stem if config else "run"
    with output.progress_bar("preparing the corpus") as progress:
        result = start_run(settings, label, shlex.join(["penstock", *sys.argv[1:]]), nproc, run_dir, progress)
    _ended(result, json)


def resume(run: RunName, sets: Sets = None, nproc: Nproc = 1, runs_dir: RunsDir = "runs", json: Json = False) -> None:
    """Go on with a run from its newest snapshot, on any number of ranks."""
    from penstock.config.load import parse_sets
    from penstock.store import find_run

    found = find_run(run, runs_dir)
    values = parse_sets(sets or [])
    from penstock.engine import resume_run

    with output.progress_bar("preparing the corpus") as progress:
        result = resume_run(found, values, nproc, progress)
    _ended(result, json)


def scale(
    run: RunName,
    ranks: Annotated[int, typer.Option("--ranks", help="Ranks to go on with.")],
    wait: Annotated[float, typer.Option("--wait", min=0.1, help="Seconds to wait for it; after that it is taken back.")] = 120.0,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Have a running run go on with more or fewer ranks after its next step, without losing one."""
    from penstock.store import find_run

    found = find_run(run, runs_dir)
    from penstock.engine import scale_run

    output.show(scale_run(found, ranks, wait), json, lambda r: f"step {r['step']}: {r['text']}")


def generate(
    run: RunName,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to go on from; empty: start of a document.")] = "",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Sample among the k likeliest tokens; 0: all.")] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sample.")] = 0,
    device: Device = None,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Let a run's model write text."""
    from penstock.engine import open_model, speak
    from penstock.store import find_run

    model = open_model(find_run(run, runs_dir), device)
    text = speak(model, prompt, tokens, temperature, top_k, seed)
    output.show({"run": str(model.run.path), "step": model.progress.step, "prompt": prompt, "text": text}, json, lambda _: prompt + text)


def evaluate(
    run: RunName,
    data: Annotated[str, typer.Option("--data", help="Text to score: file, folder, glob, .jsonl or .parquet.")],
    device: Device = None,
    runs_dir: RunsDir = "runs",
    json: Json = False,
) -> None:
    """Score other text under a run's model."""
    from penstock.engine import open_model, score
    from penstock.store import find_run

    result = score(open_model(find_run(run, runs_dir), device), data)
    output.show(result, json, output.score_line)


def export(
    run: RunName, folder: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")], runs_dir: RunsDir = "runs", json: Json = False
) -> None:
    """Write a run's model as a folder that transformers loads."""
    from penstock.engine import export_model, open_model
    from penstock.store import find_run

    result = export_model(open_model(find_run(run, runs_dir), "cpu"), folder)
    output.show(result, json, lambda r: f"wrote {r['folder']}; load it with transformers.AutoModelForCausalLM.from_pretrained('{r['folder']}')")


def import_(
    source: Annotated[Path, typer.Argument(metavar="HF_FOLDER", help="Folder with config.json, *.safetensors and tokenizer.json.")],
    config: ConfigFile = None,
    sets: Sets = None,
    run_dir: Annotated[Optional[Path], typer.Option("--run-dir", help="Folder of the new run.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """Make a run from Hugging Face weights, to go on from with `penstock resume`."""
    from penstock.config import load_config
    from penstock.store import new_run_folder

    settings = load_config(config, sets or [])
    from penstock.engine import import_model

    run = import_model(source, settings, run_dir or new_run_folder(settings, source.resolve().name))
    output.show({"run": str(run.path)}, json, lambda r: f"{r['run']}; go on with `penstock resume {r['run']} --set data.path=… --set train.steps=…`")


def _ended(result: dict[str, Any], json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    output.show(result, json, output.summary_text)
    if result.get("state") == "interrupted":
        print(f"interrupted after step {result['step']}, saved; go on with: penstock resume {result['run']}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
