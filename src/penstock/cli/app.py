"""The `penstock` command: its subcommands in the order of its help, and one place where errors become exit codes.

Every command takes `--json`: one JSON object on stdout, everything else on stderr. Exit codes: 0 done; 2 bad input, with a
one-line cause and mend; 1 a fault of ours; 130 interrupted after a clean snapshot.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from penstock.cli.act import snapshot, stop
from penstock.cli.alerts import alerts
from penstock.cli.change import change
from penstock.cli.dashboard import dashboard, report
from penstock.cli.lab import chaos, lab
from penstock.cli.metrics import metrics
from penstock.cli.plan import config_, layout, schedule, verify
from penstock.cli.runs import runs
from penstock.cli.story import replay
from penstock.cli.threads import set_waiting
from penstock.cli.train import INTERRUPTED, evaluate, export, generate, import_, resume, scale, train
from penstock.cli.watch import watch

app = typer.Typer(
    name="penstock",
    help="Train large language models at full pressure: the same config on a laptop and on a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Commands by what somebody wants, in the order of the help.
PANELS = {
    "Train": (train, resume, generate, evaluate, export, import_),
    "Look": (watch, dashboard, report, alerts, metrics),
    "Steer a running run": (snapshot, stop, change, scale),
    "Plan": (config_, layout, schedule),
    "Prove": (verify, replay, chaos),
}
NAMES = {evaluate: "eval", import_: "import", config_: "config"}

for panel, commands in PANELS.items():
    for command in commands:
        # what follows `chaos` is another command with options of its own
        app.command(NAMES.get(command), rich_help_panel=panel, context_settings={"allow_interspersed_args": command is not chaos})(command)
app.add_typer(runs, rich_help_panel="Look")
app.add_typer(lab, rich_help_panel="Prove")

set_waiting(os.environ)  # read when torch is loaded


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
