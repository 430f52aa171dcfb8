"""Where experts live: load of the busiest place over the mean, for our search and for DeepSeek's EPLB, on recorded and on drawn routing.

A small mixture of experts (32 experts, 4 a token, two layers of them) trains for 240 steps of 1024 tokens on the source code that comes with
Python, once without balancing and once with the bias that balances routers (arXiv 2408.15664, 0.001 a step), and every layer's tokens per expert
are recorded at every step, and added up over windows of 40 steps. Experts are placed on 8 places with 25 % spare slots (5 a place).

Load of the busiest place over the mean, the largest over layers and windows of both runs:
`eplb_max_over_mean`, `ours_max_over_mean` placed by the loads of the window itself, as papers on placement report it (aim: at most 1.03);
`eplb_next_window`, `ours_next_window` placed by the window before, which is what a run can know, and `..._recent` by its last 10 steps only;
`even_max_over_mean` without replicas, four experts a place. `..._typical` are medians instead of the largest. `ours_each_step` is the
median over single steps, placed by the window before: what a step waits for, noise of its 512 rows a place included.
`worst_ratio_to_eplb` is the largest ratio of ours to EPLB's on the window itself (at most 1 by construction), also over drawn loads: 32 experts
whose loads fall as rank^-s, s from 0.5 to 1.5, each times a factor from 0.7 to 1.3, 20 draws of each; `eplb_zipf`, `ours_zipf` are the largest of
those. `search_ms` is the mean time of a search.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.rigs import penstock_parts, penstock_step
from penstock.models.moe import Router
from penstock.parallel.experts.balance import Slots, balanced_slots, eplb_slots, even_slots, place_loads

PLACES, ROOM, EXPERTS, STEPS, WINDOW, RECENT = 8, 5, 32, 240, 40, 10
SETS = [
    "data.max_bytes=1000000", "data.vocab=512", "model.layers=3", "model.dim=64", "model.context=64", "model.heads=2", "model.kv_heads=2",
    f"model.moe.experts={EXPERTS}", "model.moe.active=4", "model.moe.dim=32", "model.moe.groups=1", "model.moe.active_groups=1",
    "compile.enabled=off", f"train.steps={STEPS}", "eval.sequences=8",
]


def run() -> dict[str, float | str]:
    """Record both runs, place, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        recorded = np.concatenate([record(rate, Path(folder)) for rate in (0.0, 0.001)], axis=1)
    windows = recorded.reshape(STEPS // WINDOW, WINDOW, *recorded.shape[1:])
    loads_wle = windows.sum(1)
    placed = {"eplb": eplb_slots, "ours": balanced_slots}
    same = {name: placed_by(loads_wle, loads_wle, find) for name, find in placed.items()}
    zipf = {name: placed_by(drawn_loads(), drawn_loads(), find) for name, find in placed.items()}
    known = [[balanced_slots(load_e, PLACES, ROOM) for load_e in layers] for layers in loads_wle[:-1]]
    ahead = {name: placed_by(loads_wle[:-1], loads_wle[1:], find) for name, find in placed.items()}
    recent = {name: placed_by(windows[:-1, -RECENT:].sum(1), loads_wle[1:], find) for name, find in placed.items()}
    steps = [uneven(step[layer], slots) for window, layers in zip(windows[1:], known) for step in window for layer, slots in enumerate(layers)]
    ratios = [ours / eplb for found in (same, zipf) for ours, eplb in zip(found["ours"], found["eplb"])]
    figures: dict[str, float | str] = {"even_max_over_mean": max(uneven(e, even_slots(EXPERTS, PLACES)) for e in loads_wle.reshape(-1, EXPERTS))}
    for name in placed:
        figures |= {f"{name}_max_over_mean": max(same[name]), f"{name}_typical": statistics.median(same[name])}
        figures |= {f"{name}_next_window": max(ahead[name]), f"{name}_next_window_typical": statistics.median(ahead[name])}
        figures |= {f"{name}_recent": max(recent[name]), f"{name}_recent_typical": statistics.median(recent[name])}
        figures[f"{name}_zipf"] = max(zipf[name])
    return figures | {"ours_each_step": statistics.median(steps), "worst_ratio_to_eplb": max(ratios), "search_ms": search_ms(loads_wle)}


def record(bias_rate: float, folder: Path) -> NDArray[np.int64]:
    """Tokens per expert by step and layer (s, l, e) of a run that balances its routers at `bias_rate`."""
    parts = penstock_parts("tiny-moe", [*SETS, f"model.moe.bias_rate={bias_rate}"], folder)
    routers = [module for module in parts.decoder.modules() if isinstance(module, Router)]
    history: list[list[NDArray[np.int64]]] = [[] for _ in routers]
    for loads, router in zip(history, routers):
        router.register_forward_hook(lambda _module, _inputs, routed, loads=loads: loads.append(routed[2].numpy()))
    step = penstock_step(parts)
    for _ in range(STEPS):
        step()
    parts.journal.close()
    return np.array(history).transpose(1, 0, 2)


def drawn_loads() -> NDArray[np.float64]:
    """Loads that fall as a power of the rank."""
    loads = []
    for law in (0.5, 0.75, 1.0, 1.25, 1.5):
        for seed in range(20):
            generator = np.random.default_rng([seed, int(100 * law)])
            loads.append(np.round(generator.permutation(1e6 / np.arange(1, EXPERTS + 1) ** law) * generator.uniform(0.7, 1.3, EXPERTS)))
    return np.stack(loads)


def uneven(load_e: NDArray, slots: Slots) -> float:
    """Load of the busiest place over the mean."""
    loads = place_loads(load_e, slots)
    return float(loads.max() / loads.mean())


def placed_by(known_wle: NDArray, loads_wle: NDArray, find: Callable[[NDArray, int, int], Slots]) -> list[float]:
    """Unevenness of the loads (..., e) when their experts are placed by those that are known."""
    pairs = zip(known_wle.reshape(-1, EXPERTS), loads_wle.reshape(-1, EXPERTS))
    return [uneven(load_e, find(known_e, PLACES, ROOM)) for known_e, load_e in pairs]


def search_ms(loads_wle: NDArray) -> float:
    """Mean milliseconds of a search."""
    start = time.perf_counter()
    cases = loads_wle.reshape(-1, EXPERTS)
    for load_e in cases:
        balanced_slots(load_e, PLACES, ROOM)
    return 1e3 * (time.perf_counter() - start) / len(cases)
