"""Gradient exchange over a slow network, on emulated nodes with links of 200 Mbit/s (needs root, `ip` and `tc`).

Ten matrices of 1024 × 1024 float32 gradients (42 MB) are summed over all ranks; kinds take turns in one start of the ranks; the median of five.
`NxR` is nodes × ranks on each.

    NxR_flat_s, NxR_hierarchical_s, NxR_topk_5pct_s, NxR_topk_1pct_s, NxR_powersgd_s (rank 8)
                                 seconds of the whole sum, coding included; with _low_s and _high_s
    sync_speedup_hierarchical    flat over hierarchical, the least of all NxR (aim 1.4); each as NxR_speedup_hierarchical
    sync_speedup_compressed      flat over topk_5pct, the least of all NxR (aim 8); each as NxR_speedup_compressed
    bytes_saved_5pct, _1pct      of the bytes that a node sends in the dense exchange between nodes, the share that top-k with 4-bit values saves, the
                                 least of all NxR (aims 0.97, 0.992); each as NxR_bytes_saved_5pct, _1pct. Every node's message goes to every
                                 other, so with more nodes it is less
    meter_over_counter           what the meter says nodes send over what their interfaces counted, all sums together (aim 0.95 to 1.05)
    meter_over_counter_worst     the same where it is farthest from 1; each as NxR_KIND_meter_over_counter. Of few bytes, headers and
                                 acknowledgements are many
    exposed_share                seconds the step waits for the exchange after a backward pass 1.5 times as long, with overlap over without: the worst
                                 (aim 0.3)

    loss_excess_5pct             what top-k at 5 % costs in validation loss over dense, the worst seed; with the other kinds' figures of
                                 `exchange_learning.py`, which this runs first (about a quarter of an hour; PENSTOCK_EXCHANGE_TOKENS=0 leaves it out)

And in a stated model of 16 nodes × 8 GPUs (`model_seconds`), dense float32 gradients of 25 MB and 1 GB:

    model_25mb_…, model_1gb_…    speed-up of hierarchical, and with top-k at 5 % between nodes, over one ring, and over eight rings as NCCL makes them
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks import exchange_learning

SHAPES = ((2, 2), (2, 4), (4, 2))
BANDWIDTH = "200mbit"
#: The model: bytes per second and seconds a message inside a node (NVLink) and between nodes (each GPU with a network card of its own).
INSIDE, BETWEEN = (350e9, 2e-6), (45e9, 8e-6)
#: Share of dense float32's bytes that top-k at 5 % with 4-bit values sends.
SENT_5PCT = 0.0157


def run() -> dict[str, float | str]:
    """All figures."""
    found: dict[str, float | str] = {}
    if os.environ.get("PENSTOCK_EXCHANGE_TOKENS") != "0":
        found |= {f"learning_{key}": value for key, value in exchange_learning.run().items()}
        found["loss_excess_5pct"] = found["learning_topk_5pct_excess"]
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        return found | {"skipped": "the network's figures need root, ip and tc (Debian: iproute2)"} | model_figures()
    speedups: dict[str, list[float]] = {"hierarchical": [], "compressed": []}
    exposed: list[float] = []
    ratios: list[float] = []
    saved: dict[str, list[float]] = {}
    metered = counted = 0.0
    for nodes, ranks in SHAPES:
        of_shape = measure(nodes, ranks)
        name = f"{nodes}x{ranks}"
        for kind, other in (("hierarchical", "hierarchical"), ("compressed", "topk_5pct")):
            speedups[kind].append(of_shape["flat_s"] / of_shape[f"{other}_s"])
            found[f"{name}_speedup_{kind}"] = speedups[kind][-1]
        found |= {f"{name}_{key}": value for key, value in of_shape.items() if key.endswith("_s")}
        for kind in (key.removesuffix("_metered") for key in of_shape if key.endswith("_metered")):
            ratios.append(of_shape[f"{kind}_metered"] / of_shape[f"{kind}_counted"])
            found[f"{name}_{kind}_meter_over_counter"] = ratios[-1]
            metered, counted = metered + of_shape[f"{kind}_metered"], counted + of_shape[f"{kind}_counted"]
        exposed += [value for key, value in of_shape.items() if key.endswith("_exposed_share")]
        for density in ("5pct", "1pct"):
            share = 1 - of_shape[f"topk_{density}_metered"] / of_shape["hierarchical_metered"]
            found[f"{name}_bytes_saved_{density}"] = share
            saved.setdefault(density, []).append(share)
    found |= {f"sync_speedup_{kind}": min(values) for kind, values in speedups.items()}
    found |= {f"bytes_saved_{density}": min(values) for density, values in saved.items()}
    found |= {"meter_over_counter": metered / counted, "meter_over_counter_worst": max(ratios, key=lambda ratio: abs(ratio - 1))}
    found["exposed_share"] = max(exposed)
    return found | model_figures()


def measure(nodes: int, ranks: int) -> dict[str, float]:
    """What ranks on emulated nodes find."""
    from penstock.lab import emulated_nodes, ranks_on_nodes

    with emulated_nodes(nodes, BANDWIDTH) as cluster, tempfile.TemporaryDirectory(prefix="penstock-exchange-") as name:
        with ranks_on_nodes(cluster, ["-m", "benchmarks.exchange_ranks", name], ranks, Path(name)) as started:
            started.wait("this is a fault of the benchmark; see the traceback", deadline_s=600)
        found: dict[str, float] = json.loads((Path(name) / "figures.json").read_text(encoding="utf-8"))
        return found


def model_figures() -> dict[str, float | str]:
    """Speed-ups in the model of 16 nodes × 8 GPUs."""
    figures: dict[str, float | str] = {}
    for label, n_bytes in (("25mb", 25e6), ("1gb", 1e9)):
        seconds = model_seconds(n_bytes, 16, 8)
        for kind in ("hierarchical", "compressed"):
            figures |= {f"model_{label}_{kind}_over_{base}": seconds[base] / seconds[kind] for base in ("one_ring", "eight_rings")}
    return figures


def model_seconds(n_bytes: float, nodes: int, gpus: int) -> dict[str, float]:
    """Seconds of an all-reduce by alpha and beta (Hockney, 1994), legs one after the other, no trees.

    A ring of p ranks takes 2 (p - 1) messages of n / p bytes. `one_ring` runs through all GPUs over one card of each node; `eight_rings` through
    all GPUs over every card at once, each with its part of the bytes. `hierarchical`: reduce-scatter inside, a ring over the nodes of each GPU's
    part, all-gather inside. `compressed`: that with top-k messages gathered between nodes; coding is left out.
    """

    def ring(size: float, ranks: int, link: tuple[float, float], passes: int = 2) -> float:
        return passes * (ranks - 1) * (size / ranks / link[0] + link[1])

    ranks = nodes * gpus
    legs = 2 * ring(n_bytes, gpus, INSIDE, passes=1)
    message = SENT_5PCT * n_bytes / gpus
    return {
        "one_ring": ring(n_bytes, ranks, BETWEEN),
        "eight_rings": ring(n_bytes / gpus, ranks, BETWEEN),
        "hierarchical": legs + ring(n_bytes / gpus, nodes, BETWEEN),
        "compressed": legs + (nodes - 1) * (message / BETWEEN[0] + BETWEEN[1]),
    }
