"""The matrix-product speed of this machine, measured, as the ceiling that utilisation is a share of.

A data sheet's figure is rarely reached and unknown for a CPU in a container. So square products of a few sizes are timed for a
fraction of a second and the fastest counts: 2 n³ operations each (Golub and Van Loan, section 1.1.11). The best ever seen is kept in
`~/.cache/penstock/peaks.json` for each device, format, thread count and torch version, so a measurement on a busy moment does not
lower the ceiling; a damaged file is measured anew.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from penstock.plan.environment import cpu_name

SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}


@dataclass(frozen=True)
class Peak:
    """Measured ceiling in TFLOP/s of one device in one format."""

    tflops: float
    device: str
    dtype: str
    threads: int
    size: int


def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.15) -> Peak:
    """The device's best matrix-product speed: measured for about `seconds` for each size, or seen before.

    A size whose one product would take more than four times `seconds` is left out, unless it is the smallest.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    key = f"{name} | {dtype} | {torch.get_num_threads()} threads | torch {torch.__version__}"
    speeds: dict[int, float] = {}
    for size in SIZES[device.type]:
        if not speeds or 2 * size**3 / max(speeds.values()) <= 4 * seconds:
            speeds[size] = _speed(device, dtype, size, seconds)
    best = max(speeds, key=lambda size: speeds[size])
    peak = Peak(speeds[best] / 1e12, name, str(dtype), torch.get_num_threads(), best)
    known = _read_cache()
    try:
        seen = Peak(**known[key])
    except (KeyError, TypeError):
        seen = peak
    peak = max(peak, seen, key=lambda p: p.tflops)
    _write_cache(known | {key: asdict(peak)})
    return peak


def _speed(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> float:
    """Fastest of repeated products of two size × size matrices after one that warms up, in FLOP/s."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    repeats = 10 if device.type == "cuda" else 1
    a @ b
    _wait(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _wait(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "peaks.json"


def _read_cache() -> dict[str, dict]:
    try:
        known = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(known: dict[str, dict]) -> None:
    """Replace the cache atomically; a folder that cannot be written to only costs measuring again."""
    file = _cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as partial:
            json.dump(known, partial, indent=1)
        os.replace(partial.name, file)
    except OSError:
        return
