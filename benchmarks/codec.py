"""The codec of compressed gradient exchange on one CPU core: speed from a dense float32 gradient to the message and back, and the message's size.

A gradient of 25 M normal numbers, one thread. The contestants take turns; MB/s are those of the dense float32 gradient, 10^6 bytes a second of the
thread's CPU time, so that other programs on a shared machine count less (`wall_over_cpu`: wall time over it, of `encode_5pct_int4`; 1.0 on an idle
machine); medians over the turns, `..._low` and `..._high` the quartiles. D is `5pct` or `1pct`, the density:

`encode_D_int4_mb_s`, `encode_D_bf16_mb_s`: sampled-threshold selection, coding and checksum together (aim: at least 400);
`exact_D_int4_mb_s`: the same with exact selection; `decode_D_..._mb_s`: a message back to indices and values;
`select_D_mb_s`, `select_exact_D_mb_s`: selection alone; `dense_int4_mb_s`, `dense_decode_int4_mb_s`: all values, no indices;
`plain_D_mb_s`: what is commonly done: torch.topk of the magnitudes, int32 indices and float32 values side by side, no checksum;
`speedup_D`: the ratio of that one's seconds to those of `encode_D_int4`, within turns.

`bytes_saved_5pct`, `bytes_saved_1pct`: fewer bytes than dense float32, int4, all counted (aim: at least 0.97 and 0.992); `..._bf16` likewise;
`index_bits_D`: bits an index takes, header included, beside `index_entropy_D` (aim: within 0.1). On a machine with a GPU
`cuda_encode_D_int4_mb_s` and `cuda_decode_D_int4_mb_s` are added, by wall time, on the same gradient.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import ratio, take_turns
from penstock.comm.codec import ValuesFormat, decode, encode, index_entropy_bits, kept, select_exact, select_sampled
from penstock.comm.codec.indices import encode_indices
from penstock.comm.codec.message import HEADER

ENTRIES, TURNS = 25_000_000, 9
DENSITIES = {"5pct": 0.05, "1pct": 0.01}
SEED = 1


def run() -> dict[str, float | str]:
    """Time everything in turns on one thread, and count bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        flat = torch.randn(ENTRIES, generator=torch.Generator().manual_seed(SEED))
        figures = speeds(contestants(flat), time.thread_time) | sizes(flat)
        figures["wall_over_cpu"] = wall_over_cpu(coding(flat, "int4")["encode_5pct_int4"])
        if torch.cuda.is_available():
            figures |= {f"cuda_{name}": value for name, value in speeds(coding(flat.cuda(), "int4"), time.perf_counter).items()}
        return figures
    finally:
        torch.set_num_threads(threads)


def contestants(flat: Tensor) -> dict[str, Callable[[], object]]:
    """All ways to be timed, by name."""
    ways = coding(flat, "int4") | coding(flat, "bf16")
    for name, density in DENSITIES.items():
        ways[f"exact_{name}_int4"] = partial(_encoded, flat, select_exact, density, "int4")
        ways[f"select_{name}"] = partial(select_sampled, flat, density)
        ways[f"select_exact_{name}"] = partial(select_exact, flat, density)
        ways[f"plain_{name}"] = partial(plain, flat, density)
    message = encode(flat, None, "int4")
    return ways | {"dense_int4": lambda: encode(flat, None, "int4"), "dense_decode_int4": lambda: decode(message)}


def coding(flat: Tensor, values_format: ValuesFormat) -> dict[str, Callable[[], object]]:
    """Selection and encoding, and decoding, at each density."""
    ways: dict[str, Callable[[], object]] = {}
    for name, density in DENSITIES.items():
        message = encode(flat, select_sampled(flat, density), values_format)
        ways[f"encode_{name}_{values_format}"] = partial(_encoded, flat, select_sampled, density, values_format)
        ways[f"decode_{name}_{values_format}"] = partial(decode, message)
    return ways


def _encoded(flat: Tensor, select: Callable[[Tensor, float], Tensor], density: float, values_format: ValuesFormat) -> Tensor:
    """Selection and coding together."""
    return encode(flat, select(flat, density), values_format)


def plain(flat: Tensor, density: float) -> Tensor:
    """Top-k as other libraries send it."""
    indices = flat.abs().topk(kept(flat.numel(), density), sorted=False).indices
    return torch.cat([indices.to(torch.int32).view(torch.uint8), flat[indices].view(torch.uint8)])


def wall_over_cpu(work: Callable[[], object]) -> float:
    """How much longer than its CPU time the work takes now, over some repetitions."""
    wall, own = time.perf_counter(), time.thread_time()
    for _ in range(TURNS):
        work()
    return (time.perf_counter() - wall) / (time.thread_time() - own)


def speeds(ways: dict[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, float | str]:
    """MB/s of the dense gradient, each with its quartiles, and the ratios to the plain way where it is among them."""
    seconds = take_turns(ways, TURNS, warm_up=1, clock=clock)
    figures: dict[str, float | str] = {}
    for name, times in seconds.items():
        low, _, high = statistics.quantiles([4e-6 * ENTRIES / s for s in times], n=4)
        figures |= {f"{name}_mb_s": 4e-6 * ENTRIES / statistics.median(times), f"{name}_mb_s_low": low, f"{name}_mb_s_high": high}
    for name in DENSITIES:
        if f"plain_{name}" in seconds:
            figures |= {f"speedup_{name}": ratio(seconds[f"plain_{name}"], seconds[f"encode_{name}_int4"])["ratio"]}
    return figures


def sizes(flat: Tensor) -> dict[str, float | str]:
    """Bytes saved against dense float32 with exactly k entries, and bits an index."""
    figures: dict[str, float | str] = {}
    for name, density in DENSITIES.items():
        indices = select_exact(flat, density)
        forms: tuple[tuple[ValuesFormat, str], ...] = (("int4", ""), ("bf16", "_bf16"))
        for values_format, suffix in forms:
            figures[f"bytes_saved_{name}{suffix}"] = 1 - encode(flat, indices, values_format).numel() / (4 * ENTRIES)
        planes = encode_indices(indices, ENTRIES)[1]
        figures[f"index_bits_{name}"] = 8 * (HEADER.size + sum(plane.numel() for plane in planes)) / indices.numel()
        figures[f"index_entropy_{name}"] = index_entropy_bits(ENTRIES, indices.numel()) / indices.numel()
    return figures
