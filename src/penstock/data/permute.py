"""A pseudo-random permutation of `0 … n - 1` that is computed, not stored.

A Feistel network over an even number of bits is a bijection for any round function (Luby and Rackoff 1988, SIAM J. Comput. 17(2)); here
the round function is the SplitMix64 finaliser (Steele et al. 2014, OOPSLA, figure 16) of the half and the round's key. The domain is the
smallest power of four that holds `n`; values that fall outside `n` are permuted again until they fall inside (cycle walking,
Black and Rogaway 2002, CT-RSA, section 4), at most four times on average.

Cost: O(1) memory, about 0.3 µs a value in numpy. Not for cryptography. Where `n` is small and all values are needed, an array is simpler.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1


def mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of 64-bit words that lets every bit depend on every other; uint64 in and out."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def keyed(*words: int) -> int:
    """A 64-bit number that is a fixed pseudo-random function of non-negative integers below 2^64."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = mix(state + np.uint64((word + 1) * GOLDEN & MASK64))
    return int(state[0])


def permute(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where the permutation of `0 … n - 1` under `key` sends `indices` (all below `n`); int64 in and out."""
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    keys = mix(np.uint64(key) + np.uint64(GOLDEN) * np.arange(1, ROUNDS + 1, dtype=np.uint64))
    out = _feistel(np.asarray(indices).astype(np.uint64), half, keys)
    while (outside := np.flatnonzero(out >= np.uint64(n))).size:
        out[outside] = _feistel(out[outside], half, keys)
    return out.astype(np.int64)


def _feistel(value: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return (left << half) | right
