"""The `penstock` command: one function for each subcommand, and one place where errors become exit codes.

Every command takes `--json`: one JSON object on stdout, everything else on stderr. Exit codes: 0 done; 2 bad input, with a
one-line cause and mend; 1 a fault of ours; 130 interrupted after a clean snapshot.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer

from penstock.cli import output
from penstock.cli.act import snapshot, stop
from penstock.cli.alerts import alerts
from penstock.cli.change import change
from penstock.cli.dashboard import dashboard, report
from penstock.cli.lab import chaos, lab
from penstock.cli.metrics import metrics
from penstock.cli.runs import runs
from penstock.cli.story import replay
from penstock.cli.threads import set_waiting
from penstock.cli.watch import watch

app = typer.Typer(
    name="penstock",
    help="Train large language models at full pressure: the same config on a laptop and on a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(lab)
app.add_typer(runs)
app.command()(replay)
app.command()(change)
app.command()(metrics)
app.command()(snapshot)
app.command()(stop)
app.command()(alerts)
app.command()(dashboard)
app.command()(report)
app.command()(watch)
app.command(context_settings={"allow_interspersed_args": False})(chaos)

INTERRUPTED = 130

set_waiting(os.environ)  # read when torch is loaded

Sets = Annotated[Optional[list[str]], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; may be given several times.")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Nproc = Annotated[int, typer.Option("--nproc", help="Ranks to start on this host.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or name, or 'last'.")]
RunsDir = Annotated[str, typer.Option("--runs-dir", help="Folder that holds the runs.")]
ConfigFile = Annotated[Optional[str], typer.Argument(metavar="[CONFIG.toml]", help="A TOML file or a preset's name; none: the defaults.")]  # noqa: UP045
Device = Annotated[Optional[str], typer.Option("--device", help="cpu or cuda; none: as the run.")]  # noqa: UP045


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command("eval")
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


@app.command("export")
def export(
    run: RunName, folder: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")], runs_dir: RunsDir = "runs", json: Json = False
) -> None:
    """Write a run's model as a folder that transformers loads."""
    from penstock.engine import export_model, open_model
    from penstock.store import find_run

    result = export_model(open_model(find_run(run, runs_dir), "cpu"), folder)
    output.show(result, json, lambda r: f"wrote {r['folder']}; load it with transformers.AutoModelForCausalLM.from_pretrained('{r['folder']}')")


@app.command("import")
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command("config")
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


def run() -> NoReturn:
    """Run the command line as a process of its own."""
    code = main()
    if "torch" in sys.modules:
        from penstock.config import leave

        leave(code)
    sys.exit(code)


def main() -> int:
    """Run the command line and return the exit code."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("penstock: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _exit_code(error)
    return code if isinstance(code, int) else 0


def _exit_code(error: Exception) -> int:
    """Say what went wrong and return 2 for bad input, 1 for a dead rank; raise anything else, a fault of ours."""
    from penstock.config import RankFailed, UserError

    if isinstance(error, (UserError, RankFailed)):
        print(f"penstock: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # the parser's own complaint; its class is private to typer
        error.show()
        return 2
    raise error


def _ended(result: dict[str, Any], json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    output.show(result, json, output.summary_text)
    if result.get("state") == "interrupted":
        print(f"interrupted after step {result['step']}, saved; go on with: penstock resume {result['run']}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
