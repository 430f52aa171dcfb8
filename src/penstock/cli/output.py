"""Printing results: JSON for programs, a few aligned lines for people; progress on stderr only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.store import Run


#: Keys of `verify --json`, and the verdict of the cases under each.
VERDICTS = {"passed": "equal", "failed": "differs", "refused": "refused"}

def show(result: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    """Print a result on stdout, as one JSON object or as text."""
    print(json.dumps(result, default=str) if as_json else text(result), flush=True)


def summary_text(result: dict[str, Any]) -> str:
    """The end of a training run, for people."""
    loss = f"validation loss {result['val_loss']:.4f}" if result["val_loss"] is not None else "no evaluation yet"
    sample = result.get("sample") or {}
    lines = [f"\n{sample['prompt']}{sample['text']}\n"] if sample else []
    lines += [
        f"step {result['step']}, {result['tokens']:,} tokens, {loss}",
        f"{result['tokens_per_s']:,.0f} tokens/s, {result['mfu']:.0%} of this machine's measured peak, {result['wall_s']:.0f} s",
        *exchange_lines(result.get("exchange", {})),
        *cost_lines(result.get("cost", {})),
        f"weights {result['weights_digest'][:16]}",
        *([f"report  {report}"] if (report := Path(result["run"]) / "report.html").is_file() else []),
        f"more    penstock generate {result['run']} --prompt \"…\"",
    ]
    return "\n".join(lines)


def exchange_lines(exchange: dict[str, Any]) -> list[str]:
    """What went between the nodes of a run on several, for people."""
    if exchange.get("nodes", 1) == 1:
        return []
    saved = f", the exchange {exchange['saved']:.1%} less than dense float32" if exchange["saved"] else ""
    waited = f"waited {exchange['exposed_s']:.1f} s, {exchange['exposed_share']:.0%} of the steps"
    return [f"between nodes {exchange['bytes_between'] / 1e6:,.2f} MB{saved}; {waited}"]


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """What a run cost of which the price of a device is known, for people."""
    from penstock.monitor.units import money

    return [f"cost    {money(cost['money'], cost['currency'])} for {cost['device_hours']:.3g} hours of devices"] if "money" in cost else []


def score_line(result: dict[str, Any]) -> str:
    """The result of `penstock eval`, for people."""
    return (
        f"loss {result['loss']:.4f} nats a token, perplexity {result['perplexity']:.2f}, {result['bits_per_byte']:.3f} bits a byte "
        f"({result['tokens']:,} tokens of {result['data']}, step {result['step']})"
    )


def run_row(run: Run) -> dict[str, Any]:
    """What `penstock runs` says of one run."""
    from penstock.monitor import MetricStore
    from penstock.store import list_snapshots, run_state

    identity, summary, saved, state = run.read("run.json"), run.read("summary.json"), list_snapshots(run.path), run_state(run)
    reached = [saved[-1].step] if saved else []
    if state == "running":
        reached.append((MetricStore(run.path / "metrics").last("train") or {}).get("step", 0))
    elif state != "failed":
        reached.append(summary.get("step", 0))
    return {
        "run": str(run.path),
        "created": identity.get("created", ""),
        "state": state,
        "step": max(reached, default=0),
        "snapshot": saved[-1].step if saved else None,
        "val_loss": summary.get("val_loss"),
    }


def run_table(rows: list[dict[str, Any]], runs_dir: str) -> str:
    """The table of `penstock runs`."""
    if not rows:
        return f"no runs below {runs_dir}/; start one with `penstock train tiny`"
    cells = [["run", "created", "state", "step", "val loss"]]
    cells += [
        [r["run"], r["created"][:19], r["state"], str(r["step"]), f"{r['val_loss']:.4f}" if r["val_loss"] is not None else "–"] for r in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def change_text(result: dict[str, Any]) -> str:
    """What a change of a running run came to, or would come to, for people."""
    head = "would change" if result["dry_run"] else f"changed in {result['seconds']:.2f} s"
    lines = [f"{result['run']}: {head} after step {result['step']}"]
    lines += [f"  {name:<20} {was} → {becomes}" for name, (was, becomes) in result["settings"].items()]
    lines += [f"  keeps    {what}" for what in result["keeps"]] + [f"  loses    {what}" for what in result["loses"]]
    how = "built anew in memory, the state carried over" if result["builds"] else "stay what they are"
    lines.append(f"  parts    {how}{', and compiled again' if result['compiles'] else ''}")
    before, after = result["parameters"]
    if before != after:
        lines.append(f"  size     {before:,} parameters → {after:,}")
    if memory := result["memory"]:
        sizes = [f"{memory[name] / 1e6:,.1f} MB" for name in ("now", "after", "meanwhile", "free")]
        lines.append(f"  memory   a rank {sizes[0]} → {sizes[1]} by estimate, and {sizes[2]} more while it changes; {sizes[3]} are free")
    return "\n".join(lines)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float, str], None]]:
    """A callback(fraction, text) that draws a bar on stderr until it reaches one; plain lines where there is no terminal."""
    if not sys.stderr.isatty():
        yield _plain_progress(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %  {task.fields[note]}")
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=1.0, note="")
    started = False

    def update(fraction: float, text: str) -> None:
        nonlocal started
        if not started and fraction < 1:
            bar.start()
            started = True
        bar.update(task, completed=fraction, note=text)
        if fraction >= 1:
            bar.stop()

    try:
        yield update
    finally:
        bar.stop()


def _plain_progress(what: str) -> Callable[[float, str], None]:
    last = -1.0

    def update(fraction: float, text: str) -> None:
        nonlocal last
        if fraction - last >= 0.25 or (fraction >= 1 > last):
            print(f"{what}: {fraction:.0%} {text}".rstrip(), file=sys.stderr, flush=True)
            last = fraction

    return update
