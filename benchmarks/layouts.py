"""Bytes that tensor topologies send, counted and by formula, and what Penstock's layers cost over bare torch calls.

Bytes of one layer (64 heads, SwiGLU of 8/3 the width, float32; forward, backward and the sums of its weights' gradients) that one rank sends, for
1-D, the best 2-D grid, the best 2.5-D grid, FSDP alone (ZeRO-3: weights gathered twice, gradients reduce-scattered), and what `choose_topology`
picks with a shard axis allowed: at 4 to 64 ranks, 2 k to 256 k tokens in all ranks together, width 1 k to 16 k. The meter counts them in a
rehearsal of the real layers on a fake process group, and again on 4 and 8 real gloo ranks for a small shape.

    cases, mismatches            rehearsed cases, and those whose count is not the formula's to the byte (must be 0)
    real_cases_4, _8, real_mismatches_4, _8   the same on real ranks, float32 and bfloat16
    worst_choice                 largest ratio of the rule's choice to 1-D over all cases (never above 1)
    p64_d8192_TOKENS_TOPOLOGY    share of 1-D's bytes saved at 64 ranks and width 8192 (negative: more is sent)

Overhead of Penstock's layer on 2 gloo ranks, as medians and quartiles of the ratios within turns, contestants in the same processes:

    fsdp_overhead, _low, _high   forward and backward under `layout.shard = 2` over bare `fully_shard` of the same plain decoder, minus one
    tensor_overhead, …           the same under `layout.tensor = 2` and bare `parallelize_module` (DTensor; up to the final norm). Aim: at most 0.02
    fsdp_step_s, tensor_step_s    median seconds of the bare step

`python -m benchmarks.layouts` prints the table of `docs/layouts.md`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rehearse import rehearse_block
from penstock.config import ModelSection, load_config
from penstock.engine import start_ranks
from penstock.models import resolve_model
from penstock.parallel import Layout
from penstock.parallel.cost.estimate import block_traffic
from penstock.parallel.cost.traffic import Workload, bytes_sent
from penstock.parallel.tensor.topology import choose_topology, layer_bytes, layer_work, tensor_grids

RANKS, TOKENS, WIDTHS = (4, 8, 16, 32, 64), (2048, 8192, 16384, 65536, 262144), (1024, 4096, 8192, 16384)
CONTESTANTS = ("1d", "2d", "2.5d", "fsdp", "chosen")
HEADS = 64


@dataclass(frozen=True)
class Case:
    """A layer's width, tokens and ranks, and its workload under each contestant that divides it."""

    ranks: int
    width: int
    tokens: int
    works: dict[str, Workload]

    def bytes(self) -> dict[str, int]:
        """Bytes a rank sends, by contestant."""
        return {name: layer_bytes(work) for name, work in self.works.items()}


def run() -> dict[str, float | str]:
    """All figures."""
    cases = all_cases()
    figures: dict[str, float | str] = {"cases": float(sum(len(case.works) for case in cases))}
    figures["mismatches"] = float(sum(mismatches(case) for case in cases))
    figures["worst_choice"] = max(sent["chosen"] / sent["1d"] for sent in (case.bytes() for case in cases))
    for case in cases:
        if (case.ranks, case.width) == (64, 8192):
            sent = case.bytes()
            figures |= {f"p64_d8192_{case.tokens}_{name}": 1 - sent[name] / sent["1d"] for name in CONTESTANTS[1:]}
    return figures | on_real_ranks(4) | on_real_ranks(8) | on_real_ranks(2)


def all_cases() -> list[Case]:
    """Every number of ranks, width and number of tokens."""
    return [case(ranks, width, tokens) for ranks in RANKS for width in WIDTHS for tokens in TOKENS]


def case(ranks: int, width: int, tokens: int) -> Case:
    """The contestants for one layer; of 2-D and 2.5-D the grid that sends least."""
    model = layer_of(width)
    grids = [work for layout in tensor_grids(Layout(row=ranks)) if (work := layer_work(model, layout, tokens))]
    works = {}
    for topology in ("1d", "2d", "2.5d"):
        works[topology] = min((work for work in grids if work.layout.topology == topology), key=layer_bytes)
    for name, layout in (("fsdp", Layout(shard=ranks)), ("chosen", choose_topology(model, ranks, tokens, shard=True).layout)):
        work = layer_work(model, layout, tokens)
        assert work is not None, f"{layout} was chosen and does not fit"
        works[name] = work
    return Case(ranks, width, tokens, works)


def layer_of(width: int, heads: int = HEADS) -> ModelSection:
    """A model of one dense layer."""
    return resolve_model(load_config(None, ["model.layers=1", f"model.dim={width}", f"model.heads={heads}"]).model, 256)


def mismatches(case: Case) -> int:
    """Contestants whose bytes in a rehearsal are not the formula's."""
    return sum(rehearse_block(work) != bytes_sent(block_traffic(work, 0), work.layout) for work in case.works.values())


def on_real_ranks(ranks: int) -> dict[str, float]:
    """The figures that `layout_ranks.py` measures on so many gloo ranks of this host."""
    with tempfile.TemporaryDirectory(prefix="penstock-benchmark-") as folder:
        start_ranks("benchmarks.layout_ranks", Path(folder), ranks, 0, "look at its traceback above")
        return json.loads((Path(folder) / "figures.json").read_text(encoding="utf-8"))


def winners_table() -> str:
    """Which contestant sends least, in Markdown: a row for tokens and width, a column for ranks; with the bytes saved over 1-D."""
    lines = ["| tokens | width | " + " | ".join(f"{ranks} ranks" for ranks in RANKS) + " |", "|---|---|" + "---|" * len(RANKS)]
    for tokens in TOKENS:
        for width in WIDTHS:
            cells = [_winner(case(ranks, width, tokens)) for ranks in RANKS]
            lines.append(f"| {tokens // 1024} k | {width // 1024} k | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def savings_table(ranks: int, width: int) -> str:
    """Bytes of one layer at so many ranks, in Markdown: 1-D's in MB, the others' as a change to it."""
    lines = ["| tokens | 1-D | best 2-D | best 2.5-D | FSDP alone | chosen |", "|---|---|---|---|---|---|"]
    for tokens in TOKENS:
        drawn = case(ranks, width, tokens)
        cells = [f"{tokens // 1024} k", f"{drawn.bytes()['1d'] / 1e6:,.0f} MB", *(_change(drawn, name) for name in CONTESTANTS[1:])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _winner(case: Case) -> str:
    sent = case.bytes()
    best = min(sent, key=lambda name: sent[name])
    return "1-D" if best == "1d" else _change(case, best)


def _change(case: Case, name: str) -> str:
    """A contestant's grid, and the change of its bytes against 1-D."""
    sent = case.bytes()
    return f"{_shape(case.works[name].layout)} {sent[name] / sent['1d'] - 1:+.0%}"


def _shape(layout: Layout) -> str:
    grid = {"1d": f"1-D {layout.row}", "2d": f"2-D {layout.column}x{layout.row}", "2.5d": f"2.5-D {layout.row}x{layout.column}x{layout.depth}"}
    parts = [f"shard {layout.shard}"] if layout.shard > 1 else []
    return " · ".join(parts + ([grid[layout.topology]] if layout.tensor > 1 else []))


if __name__ == "__main__":
    print(savings_table(64, 8192), "", winners_table(), sep="\n")
