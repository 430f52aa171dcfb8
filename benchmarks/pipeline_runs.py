"""Schedules executed on real gloo ranks: bubbles beside the simulator's, against torch's ZB-V, and what an action costs.

Eight ranks whose stages sleep for given times (see `pipeline_ranks.py`), for the rows of `pipelines`:

    mM_fFiIwWcC_KIND_executed, _simulated          bubble between barriers, by the median of five steps, and the simulator's
    mM_fFiIwWcC_KIND_steady, _steady_simulated     the same without a barrier, by the time per step in the long run
    worst_difference                               largest difference of an executed step's time to the simulated one, as a share of it; aim: 0.05
    ab_ours, ab_torch                              bubbles of our schedule here and of torch's ZB-V in torch's runtime, taking turns (no transfers)

Two ranks that run the same ZB-V of tiny matrices here and in torch's runtime, taking turns:

    action_ratio, _low, _high                      seconds an action over torch's, the median within turns and its quartiles. Aim: at most 1
    action_us, action_torch_us                     the medians
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penstock.engine import start_ranks
from penstock.parallel.pipeline.kinds import KINDS, named_schedule
from penstock.parallel.pipeline.schedule import Costs
from penstock.parallel.pipeline.simulate import simulate
from penstock.parallel.pipeline.synthesise import best_schedule
from penstock.parallel.pipeline.torch_ir import to_csv

RANKS, UNIT = 8, 0.06
ROWS = ((16, (1.0, 1.0, 1.0, 0.0)), (16, (1.0, 1.2, 0.8, 0.05)), (32, (1.0, 1.2, 0.8, 0.05)))


def run() -> dict[str, float | str]:
    """All figures."""
    cases, simulated = [], []
    for micro_batches, share in ROWS:
        for kind in ("1f1b", "zb-v", "auto", "auto-late"):
            case = question(kind, micro_batches, share)
            cases.append(case)
            simulated.append(case.pop("timing"))
    ours = question("auto", 16, (1.0, 1.2, 0.8, 0.0))
    ours.pop("timing")
    found = ask(RANKS, {"sleeping": cases, "torch": ours, "per_action": False})
    small = ask(2, {"sleeping": [], "torch": None, "per_action": True})["per_action"]
    figures: dict[str, float | str] = {}
    worst = 0.0
    for case, timing, executed in zip(cases, simulated, found["sleeping"]):
        name = case["name"]
        figures |= {f"{name}_executed": executed["bubble"], f"{name}_simulated": timing.bubble}
        figures |= {f"{name}_steady": executed["steady"], f"{name}_steady_simulated": timing.steady_bubble}
        for real, planned in ((executed["bubble"], timing.bubble), (executed["steady"], timing.steady_bubble)):
            worst = max(worst, abs((1 - planned) / (1 - real) - 1))
    figures |= {"worst_difference": worst, "ab_ours": found["torch"]["ours"], "ab_torch": found["torch"]["torch"]}
    figures |= {"action_ratio": small["ratio"], "action_ratio_low": small["low"], "action_ratio_high": small["high"]}
    return figures | {"action_us": small["ours_us"], "action_torch_us": small["torch_us"]}


def question(kind: str, micro_batches: int, share: tuple[float, ...]) -> dict[str, Any]:
    """A schedule, its costs and its simulated timing; 'auto-late' is made for steps without a barrier."""
    if kind.startswith("auto"):
        named = [named_schedule(k, RANKS, micro_batches) for k in KINDS]
        schedule = best_schedule(lambda rank_of: even(rank_of, share), RANKS, micro_batches, 1.0, kind == "auto", candidates=named).schedule
    else:
        schedule = named_schedule(kind, RANKS, micro_batches)
    costs = even(schedule.rank_of, share)
    name = f"m{micro_batches}_f{share[0]:g}i{share[1]:g}w{share[2]:g}c{share[3]:g}_{kind}"
    return {"name": name, "csv": to_csv(schedule), "costs": asdict(costs), "share": share, "unit": UNIT, "timing": simulate(schedule, costs)}


def even(rank_of: tuple[int, ...], share: tuple[float, ...]) -> Costs:
    """Equal stages on those ranks."""
    return Costs.even(RANKS, len(rank_of) // RANKS, share[0], share[1], share[2], share[3])


def ask(ranks: int, questions: dict[str, Any]) -> dict[str, Any]:
    """What real ranks find."""
    with tempfile.TemporaryDirectory(prefix="penstock-pipelines-") as name:
        folder = Path(name)
        (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
        start_ranks("benchmarks.pipeline_ranks", folder, ranks, 0, "this is a fault of the benchmark; see the traceback")
        return json.loads((folder / "figures.json").read_text(encoding="utf-8"))
