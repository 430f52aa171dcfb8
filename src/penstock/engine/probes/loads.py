"""How evenly tokens are spread over a layer's experts, from their counts over all ranks.

    expert_load/layer.03.max        the busiest expert's tokens over the mean (1: even)
    expert_load/layer.03.min        the idlest expert's
    expert_load/layer.03.dead       share of the experts that got no token
    expert_load/layer.03.entropy    -Σ p log p of the shares over log of their number (1: even)
    expert_load/layer.03.busiest, .idlest     which
    expert_load/layer.03.expert.012           that expert's over the mean, where the model has `MOST_EXPERTS` in all layers together at most

Cost: a few numpy operations over layers × experts numbers. When not to use it: for each expert's course in a large model,
which has thousands.
"""

from __future__ import annotations

import numpy as np

from penstock.engine.probes.places import layer

#: Experts in all layers together of which each has a course of its own.
MOST_EXPERTS = 256


def load_figures(load_le: np.ndarray, first: int) -> dict[str, float]:
    """The figures by metric; `load_le` (layers, experts) counts tokens, of layers from `first` on. Layers that routed nothing are left out."""
    found: dict[str, float] = {}
    for number, load_e in enumerate(load_le, first):
        total, place = load_e.sum(), f"expert_load/{layer(number)}"
        if not total > 0:
            continue
        share_e = load_e / total
        present = share_e[share_e > 0]
        found |= {
            f"{place}.max": float(share_e.max() * len(load_e)),
            f"{place}.min": float(share_e.min() * len(load_e)),
            f"{place}.dead": float((load_e == 0).mean()),
            f"{place}.entropy": float(-(present * np.log(present)).sum() / np.log(max(len(load_e), 2))),
            f"{place}.busiest": float(load_e.argmax()),
            f"{place}.idlest": float(load_e.argmin()),
        }
        if load_le.size <= MOST_EXPERTS:
            found |= {f"{place}.expert.{expert:03d}": float(share * len(load_e)) for expert, share in enumerate(share_e)}
    return found
