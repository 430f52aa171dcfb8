"""The monitor's figures in one: what it costs training, how much it takes in, what it finds and what it tells wrongly.

    recall, delay_*, false_*     faults planted in real runs, and clean ones (`monitor_faults.py`)
    cost_*                       what recording a step costs (`monitor_cost.py`)
    store_*                      ingest and queries, beside TensorBoard's writer and SQLite (`monitor_store.py`)
    detect_*                     what all detectors cost a step, in the monitor's process (`detect_cost.py`)
    numenta_*                    the univariate detector on the Numenta benchmark, where PENSTOCK_NAB names it (`numenta.py`)

Some ten minutes on two quiet cores; `--seeds N` plants every fault N times.
"""

from __future__ import annotations

from benchmarks import detect_cost, monitor_cost, monitor_faults, monitor_store, numenta

PARTS = {"cost": monitor_cost, "store": monitor_store, "detect": detect_cost, "numenta": numenta}


def run() -> dict[str, float | str]:
    """All figures."""
    figures = monitor_faults.run()
    for name, part in PARTS.items():
        figures |= {f"{name}_{figure}": value for figure, value in part.run().items()}
    return figures
