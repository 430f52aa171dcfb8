"""Interleaved timing: the contestants take turns, so a machine that slows down slows all of them.

A ratio is taken within each turn and its median and spread (the middle half) over the turns are reported, which is robust
against the noise of a shared machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def take_turns(
    contestants: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 2, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each contestant in each turn, by the clock, after some warm-up turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_up + turns):
        for name, work in contestants.items():
            _wait()
            start = clock()
            work()
            _wait()
            if turn >= warm_up:
                seconds[name].append(clock() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median of slow/fast within turns, and its quartiles."""
    ratios = [a / b for a, b in zip(slow, fast)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": middle, "low": low, "high": high}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
