"""What watching a run costs the monitor's process: all detectors over 400 metrics of 4 ranks.

Figures: `ms_per_step`, `cpu_ms_per_step` (goal: 1 ms).
"""

from __future__ import annotations

import time

import numpy as np

from penstock.monitor.detect import Watch
from penstock.monitor.series.table import Names, StepTable

RANKS, METRICS, STEPS = 4, 400, 300


def run() -> dict[str, float | str]:
    """Time steps of noise under the names that the detectors look for."""
    named = ["loss/total", "grad_norm/total", "time/own", "time/step", "wait/total", "memory/resident", "data/entropy", "data/repeated", "optim/lr"]
    names = Names([*named, *(f"activation_norm/layer.{i:03d}" for i in range(METRICS - len(named)))])
    random, watch = np.random.default_rng(0), Watch()
    values = [1 + 0.01 * random.normal(size=(RANKS, METRICS)) for _ in range(STEPS)]
    tables = [StepTable(step, float(step), names, tuple(range(RANKS)), values_rm) for step, values_rm in enumerate(values, 1)]
    watch.replay((table, 0) for table in tables[:100])
    begin, cpu = time.perf_counter(), time.process_time()
    watch.replay((table, 0) for table in tables[100:])
    steps = STEPS - 100
    return {"ms_per_step": (time.perf_counter() - begin) / steps * 1e3, "cpu_ms_per_step": (time.process_time() - cpu) / steps * 1e3}
