"""Which entries of a gradient are worth sending: the k of n with the largest magnitudes.

Magnitudes are compared as integers: with the sign bit cleared, the bits of float32 numbers order as the numbers do, denormals too whatever the
processor does with them, and NaN and infinity come last, as the largest. So a NaN is always among the selected, and is reported, not lost.

- `select_exact`: the k largest, ties to the lower index. A threshold that surely lets a few more than k pass is estimated on a sample, and only
  what passes is partly sorted (torch.topk). Where the estimate let too few pass, everything is.
- `select_sampled`: what passes a threshold estimated on a sample (Deep Gradient Compression, Lin et al. 2018, arXiv:1712.01887, 3.1): as many as k
  to `TOLERANCE`, or else, by `select_exact`'s way, exactly k. Faster, and biased towards nothing; entries equal to the threshold all pass.

The sample is every s-th entry, s a prime (so that it walks through all columns of a matrix), with about `ABOVE` of the sample's entries over the
threshold: the count's standard deviation is 2.2 % of k where entries are independent. The same on every rank and device, no generator needed.
Where k is below 16384 the sampled way is the exact one.

Cost: one pass in cache-sized stretches. Where k is below 768, everything is partly sorted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from penstock.comm.codec.bits import places

TOLERANCE = 0.1  # of k
ABOVE = 2048  # entries of the sample over the threshold, at most
FEWEST = 256  # and at least, or everything is sorted
SIGMAS = 5  # standard deviations of their number by which the exact way's threshold is lower
STRETCH = 1 << 17  # entries of a pass that a core's cache holds
MAGNITUDE = 0x7FFFFFFF  # all bits but the sign
INFINITY = 0x7F800000  # bits of the least number that is not finite


class NonFiniteError(ArithmeticError):
    """A gradient holds NaN or infinity; nothing of it may be sent."""


def kept(n: int, density: float) -> int:
    """k = ⌈density · n⌉; the density must be in (0, 1]. What float arithmetic puts a hair over a whole number counts as that number."""
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it must be over 0 and at most 1")
    return min(n, math.ceil(density * n * (1 - 1e-12)))


def select_exact(flat: Tensor, density: float) -> Tensor:
    """Sorted int64 indices of the k largest magnitudes of a flat float32 tensor, exactly k.

    Raises NonFiniteError if an entry is NaN or infinite, ValueError for a density outside (0, 1] or another kind of tensor.
    """
    _check(flat)
    k = kept(flat.numel(), density)
    threshold = _threshold(flat, k, SIGMAS)
    passed, bits = _passing(flat, threshold)
    if passed.numel() < k:  # the sample did not stand for the whole
        passed, bits = _passing(flat, 0)
    return _largest(passed, bits, k)


def select_sampled(flat: Tensor, density: float) -> Tensor:
    """Sorted int64 indices of (1 ± TOLERANCE) · k of the largest magnitudes of a flat float32 tensor: no entry left out exceeds one selected.

    Raises NonFiniteError if an entry is NaN or infinite, ValueError for a density outside (0, 1] or another kind of tensor.
    """
    _check(flat)
    k = kept(flat.numel(), density)
    if k < 8 * ABOVE:  # a sample that stays within the tolerance would not be small
        return select_exact(flat, density)
    passed, bits = _passing(flat, _threshold(flat, k, 0))
    if passed.numel() < (1 - TOLERANCE) * k:
        return select_exact(flat, density)
    return passed if passed.numel() <= (1 + TOLERANCE) * k else _largest(passed, bits, k)


def _check(flat: Tensor) -> None:
    if flat.dtype != torch.float32 or flat.dim() != 1 or not flat.is_contiguous():
        raise ValueError(f"need a flat contiguous float32 tensor, got {tuple(flat.shape)} of {flat.dtype}")


def _threshold(flat: Tensor, k: int, sigmas: int) -> int:
    """Bits of a magnitude that k entries reach, by a sample, and more by some deviations; 0, which all reach, where a sample would not be small."""
    above = max(FEWEST, min(ABOVE, k // 8))
    stride = _prime_below(k // above)
    if stride < 3 or k == flat.numel():
        return 0
    sample = flat[::stride].view(torch.int32) & MAGNITUDE
    expected = k * sample.numel() / flat.numel()
    passing = min(math.ceil(expected + sigmas * math.sqrt(expected)), sample.numel())
    return int(torch.topk(sample, passing, sorted=False).values.amin())


def _passing(flat: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    """Indices of the entries whose magnitude bits reach the threshold, and these bits (int32)."""
    whole = flat.view(torch.int32)
    stretch = STRETCH if flat.device.type == "cpu" else max(flat.numel(), 1)
    indices, found, most = [], [], []
    for start in range(0, flat.numel(), stretch):
        bits = whole[start : start + stretch] & MAGNITUDE
        most.append(bits.amax())
        inside = _reaching(bits, threshold)
        found.append(bits.index_select(0, inside))
        indices.append(inside.add_(start))
    if not indices:
        return flat.new_empty(0, dtype=torch.int64), whole
    if int(torch.stack(most).amax()) >= INFINITY:
        _report(flat)
    return torch.cat(indices), torch.cat(found)


def _reaching(bits: Tensor, threshold: int) -> Tensor:
    """Indices of the bits that are at least the threshold."""
    if bits.device.type == "cpu":
        return places(torch.from_numpy(bits.numpy() >= threshold))  # torch compares integers an element at a time
    return places(bits >= threshold)


def _report(flat: Tensor) -> None:
    bad = places(~flat.isfinite())
    raise NonFiniteError(f"{bad.numel()} of {flat.numel()} entries of the gradient are NaN or infinite, the first of them number {int(bad[0])}")


def _largest(indices: Tensor, bits: Tensor, k: int) -> Tensor:
    """The k of the indices whose bits are largest, in order; ties go to the first."""
    if k == indices.numel():
        return indices
    threshold = torch.topk(bits, k, sorted=False).values.amin()
    above, level = bits > threshold, bits == threshold
    return indices[above | level & (level.cumsum(0) <= k - above.sum())]


def _prime_below(number: int) -> int:
    """The largest prime up to `number`, or 0."""
    return next((p for p in range(number, 1, -1) if all(p % d for d in range(2, math.isqrt(p) + 1))), 0)
