"""A 64-bit checksum of bytes that stays on the tensor's device.

The bytes are read as 64-bit words w_i, and the sum of (w_i ^ w_i >> 29) · c_i is taken modulo 2^64, with c_i pseudo-random and odd (a row's factor
times a column's). The xor-shift is a bijection and an odd factor has an inverse modulo 2^64, so any damage within one aligned 8-byte word, every
flipped bit among it, always changes the sum; other damage goes unnoticed about once in 2^64. It is no defence against forgery.

Cost: two passes of integer operations over the words, in stretches that fit a cache. XXH3 would be as quick, but only on the CPU.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

COLUMNS = 512
ROWS = 64  # rows of a stretch: 256 KiB, which a core's cache holds
MASK = 2**64 - 1


def checksum(words: Tensor) -> Tensor:
    """The sum over a flat int64 tensor, as an int64 tensor of one element on its device; zero words at the end change nothing."""
    columns, rows = _factors(words.device)
    total = words.new_zeros(())
    stretch = ROWS * COLUMNS if words.device.type == "cpu" else max(words.numel(), 1)
    for number, part in enumerate(words.split(stretch)):
        mixed = (part >> 29).bitwise_xor_(part)
        if mixed.numel() % COLUMNS:
            mixed = torch.nn.functional.pad(mixed, (0, -mixed.numel() % COLUMNS))
        sums = mixed.view(-1, COLUMNS).mul_(columns).sum(1)
        first = number * ROWS
        factors = torch.arange(first, first + sums.numel(), device=words.device).mul_(rows).bitwise_or_(1)
        total += sums.mul_(factors).sum()
    return total


@cache
def _factors(device: torch.device) -> tuple[Tensor, int]:
    """Odd pseudo-random factors of the columns (splitmix64, Steele et al. 2014), and the one whose multiples are those of the rows."""
    state, factors = 0, []
    for _ in range(COLUMNS):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        factors.append(_signed((mixed ^ (mixed >> 31)) | 1))
    return torch.tensor(factors, device=device), _signed(0x9E3779B97F4A7C14)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
