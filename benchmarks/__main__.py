"""`python -m benchmarks [NAME]... [--json] [--list]`: run the benchmarks and print `{name: {figure: value}}`.

Each benchmark is a module here with a `run() -> dict[str, float | str]`; its docstring says what its figures are compared
with. A benchmark that needs what this machine lacks (a GPU, a corpus) says so in a figure named `skipped`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys

from penstock.cli.threads import set_waiting

os.environ.setdefault("TORCHINDUCTOR_MIX_ORDER_REDUCTION", "0")
set_waiting(os.environ)  # as the command line does

NAMES = (
    "cpu_speed", "step_overhead", "cost_growth", "learning", "gpu_speed", "expert_balance", "layouts", "pipelines", "pipeline_runs", "slow_rank",
    "micro_batch", "codec", "balance", "exchange", "store", "survive", "monitor", "dashboard",
)  # fmt: skip
#: Parts of others, and studies of hours, which run only when named.
PARTS = (
    "dashboard_page", "dashboard_load", "monitor_cost", "monitor_faults", "monitor_store", "numenta", "detect_cost", "store_bytes", "store_scale",
    "store_training", "exchange_learning",
)  # fmt: skip


def main() -> int:
    """Parse, run, print; exit code 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; none: all of these; also {', '.join(PARTS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--list", action="store_true", help="print each benchmark's docstring")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each kind where a benchmark plants faults (PENSTOCK_SEEDS)")
    arguments = parser.parse_args()
    if arguments.seeds is not None:
        os.environ["PENSTOCK_SEEDS"] = str(arguments.seeds)
    unknown = set(arguments.names) - {*NAMES, *PARTS}
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES + PARTS)}", file=sys.stderr)
        return 2
    figures = {}
    for name in arguments.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        if arguments.list:
            print(f"{name}\n  {(module.__doc__ or '').strip()}\n")
            continue
        print(f"running {name}", file=sys.stderr, flush=True)
        figures[name] = module.run()
        if not arguments.json:
            print(f"{name}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures[name].items()), flush=True)
    if arguments.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
