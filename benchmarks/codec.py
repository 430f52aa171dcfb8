"""The codec of compressed gradient exchange on one CPU core: speed from a dense float32 gradient to the message and back, and the message's size.

A gradient of 25 M normal numbers, a thread. The contestants take turns; MB/s are those of the dense float32 gradient, 10^6 bytes, medians over the
turns, `..._low` and `..._high` the quartiles. For 5 % and 1 % density, `D` being `5pct` or `1pct`, and values in int4 and bf16:

`encode_D_int4_mb_s`, `encode_D_bf16_mb_s`: sampled-threshold selection, coding and checksum together (aim: at least 400);
`exact_D_int4_mb_s`: the same with exact selection; `decode_D_..._mb_s`: a message back to indices and values; `select_D_mb_s`,
`select_exact_D_mb_s`: selection alone; `plain_D_mb_s`: what is commonly done: torch.topk of the magnitudes, int32 indices and float32 values side by side, no checksum, and `speedup_D` the
ratio of the seconds of that to `encode_D_int4`, within turns. `dense_int4_mb_s`, `dense_decode_int4_mb_s`: all values, no indices.

`bytes_saved_5pct`, `bytes_saved_1pct`: fewer bytes than dense float32, int4, everything counted (aim: at least 0.97 and 0.992), `..._bf16` likewise;
`index_bits_D`: bits an index takes, header included, beside `index_entropy_D` (aim: within 0.1). On a machine with a GPU
`cuda_encode_D_int4_mb_s` and `cuda_decode_D_int4_mb_s` are added, on the same gradient.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import ratio, take_turns
from penstock.comm.codec import decode, encode, index_entropy_bits, kept, select_exact, select_sampled
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
        figures = speeds(contestants(flat)) | sizes(flat)
        if torch.cuda.is_available():
            figures |= {f"cuda_{name}": value for name, value in speeds(coding(flat.cuda(), "int4")).items()}
        return figures
    finally:
        torch.set_num_threads(threads)


def contestants(flat: Tensor) -> dict[str, Callable[[], object]]:
    """All ways to be timed, by name."""
    ways = coding(flat, "int4") | coding(flat, "bf16")
    for name, density in DENSITIES.items():
        ways[f"exact_{name}_int4"] = lambda density=density: encode(flat, select_exact(flat, density), "int4")
        ways[f"select_{name}"] = lambda density=density: select_sampled(flat, density)
        ways[f"select_exact_{name}"] = lambda density=density: select_exact(flat, density)
        ways[f"plain_{name}"] = lambda density=density: plain(flat, density)
    message = encode(flat, None, "int4")
    return ways | {"dense_int4": lambda: encode(flat, None, "int4"), "dense_decode_int4": lambda: decode(message)}


def coding(flat: Tensor, values_format: str) -> dict[str, Callable[[], object]]:
    """Selection and encoding, and decoding, at each density."""
    ways: dict[str, Callable[[], object]] = {}
    for name, density in DENSITIES.items():
        message = encode(flat, select_sampled(flat, density), values_format)
        ways[f"encode_{name}_{values_format}"] = lambda density=density: encode(flat, select_sampled(flat, density), values_format)
        ways[f"decode_{name}_{values_format}"] = lambda message=message: decode(message)
    return ways


def plain(flat: Tensor, density: float) -> Tensor:
    """Top-k as other libraries send it."""
    indices = flat.abs().topk(kept(flat.numel(), density), sorted=False).indices
    return torch.cat([indices.to(torch.int32).view(torch.uint8), flat[indices].view(torch.uint8)])


def speeds(ways: dict[str, Callable[[], object]]) -> dict[str, float | str]:
    """MB/s of the dense gradient, each with its quartiles, and the ratios to the plain way where it is among them."""
    seconds = take_turns(ways, TURNS, warm_up=1)
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
        for values_format, suffix in (("int4", ""), ("bf16", "_bf16")):
            figures[f"bytes_saved_{name}{suffix}"] = 1 - encode(flat, indices, values_format).numel() / (4 * ENTRIES)
        planes = encode_indices(indices, ENTRIES)[1]
        figures[f"index_bits_{name}"] = 8 * (HEADER.size + sum(plane.numel() for plane in planes)) / indices.numel()
        figures[f"index_entropy_{name}"] = index_entropy_bits(ENTRIES, indices.numel()) / indices.numel()
    return figures
