"""Sorted indices as few bits: the gaps between them, coded in the smallest of three ways, each way's size known before it is written.

- `Code.FIXED`: every gap in the width of the largest. Best where gaps are alike; all n of n indices take no bytes.
- `Code.RICE`: Golomb-Rice (Golomb 1966; Rice and Plaunt 1971). Of each gap g the low b bits, then g >> b as so many zeros and a one. Random indices
  take 0.03 to 0.09 bits more than their entropy from 0.1 to 5 % density. With b = 0 it is the plain bitmap, which dense random indices want.
- `Code.RUNS`: lengths of runs and gaps between them, both Rice-coded, for indices that come in stretches (rows of an embedding).

Low bits and zeros-and-ones are written apart, each as a plane. The ones' places in theirs are a cumulative sum when written and `nonzero` when read,
so no loop and no offsets of chunks are needed, and nothing but those two planes is sent. With ones at p_i, the indices are
((p_i - i) << b) + Σ_{j ≤ i} (low_j + 1) - 1. The size, m (b + 1) + Σ g >> b, is convex in b: the best b is found by walking downhill.

Cost: about 15 operations an index. On CUDA the host waits for the device about five times: for what the sizes depend on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from penstock.comm.codec.bits import MAX_WIDTH, pack, packed_bytes, places, unpack

MAX_LENGTH = 2**31 - 1  # of a tensor, so that gaps are int32


class Code(IntEnum):
    """How a message tells which entries it holds."""

    ALL = 0  # all of them: no indices
    FIXED = 1
    RICE = 2
    RUNS = 3


@dataclass(frozen=True)
class Rice:
    """What a reader must know of `count` Rice-coded numbers: how many low bits each has, and how many zeros there are in all."""

    count: int = 0
    low_bits: int = 0
    zeros: int = 0

    @property
    def n_bits(self) -> int:
        """Size, padding to bytes left out."""
        return self.count * (self.low_bits + 1) + self.zeros

    @property
    def sections(self) -> list[int]:
        """Bytes of the low bits, and of the zeros and ones."""
        return [packed_bytes(self.count, self.low_bits), packed_bytes(self.count + self.zeros, 1)]


@dataclass(frozen=True)
class IndexForm:
    """The code, and its parameters: FIXED has its width in `gaps.low_bits`, RUNS has `lengths` too."""

    code: Code = Code.ALL
    gaps: Rice = Rice()
    lengths: Rice = Rice()

    @property
    def sections(self) -> list[int]:
        """Bytes of each plane, in the order in which they are written."""
        if self.code is Code.FIXED:
            return [packed_bytes(self.gaps.count, self.gaps.low_bits)]
        return {Code.ALL: [], Code.RICE: self.gaps.sections, Code.RUNS: self.gaps.sections + self.lengths.sections}[self.code]


class IndexFault(ValueError):
    """Coded indices that no writer makes: counts that disagree, or places outside the tensor."""


def index_entropy_bits(n: int, k: int) -> float:
    """Least bits for k indices of n where all sets are alike likely: log2 of the number of sets, which tends to n · H(k/n)."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def encode_indices(indices: Tensor, n: int) -> tuple[IndexForm, list[Tensor]]:
    """The smallest form of strictly increasing int64 indices into n entries, and its planes. Raises ValueError for indices that are not such."""
    k = indices.numel()
    if not k:
        return IndexForm(Code.FIXED), [indices.new_empty(0, dtype=torch.uint8)]
    short = indices.to(torch.int32)
    gaps = short.clone()
    torch.sub(short[1:], short[:-1], out=gaps[1:])
    gaps[1:] -= 1
    least, most = gaps.aminmax()
    first, last, least, most, joined = torch.stack([indices[0], indices[-1], least.long(), most.long(), (gaps == 0).sum()]).tolist()
    if not 0 <= first <= last < n or least < 0:
        raise ValueError(f"need strictly increasing indices from 0 to {n - 1}, got {k} from {first} to {last}")
    rice = best_rice(gaps, last - k + 1)
    width = most.bit_length()
    if joined >= k // 2 and k > 1:
        starts, lengths = _runs(gaps)
        runs = IndexForm(Code.RUNS, best_rice(starts, last - k + 1), best_rice(lengths, k - lengths.numel()))
        if runs.gaps.n_bits + runs.lengths.n_bits < min(rice.n_bits, k * width):
            return runs, write_rice(starts, runs.gaps) + write_rice(lengths, runs.lengths)
    if k * width <= rice.n_bits:
        return IndexForm(Code.FIXED, Rice(k, width)), [pack(gaps, width)]
    return IndexForm(Code.RICE, rice), write_rice(gaps, rice)


def decode_indices(form: IndexForm, planes: list[Tensor], n: int, k: int) -> Tensor:
    """The int64 indices of a form's planes; raises IndexFault where they are not k strictly increasing ones below n.

    Takes no more memory than the planes, k and the zeros call for. Form and planes must fit each other.
    """
    if not k:
        return torch.empty(0, dtype=torch.int64, device=planes[0].device)
    if form.code is Code.FIXED:
        indices = unpack(planes[0], k, form.gaps.low_bits).cumsum(0).add_(_counting(k, planes[0]))
    elif form.code is Code.RICE:
        indices = read_rice_sums(planes, form.gaps, n)
    else:
        indices = _decode_runs(form, planes, n, k)
    if int(indices[-1]) >= n:
        raise IndexFault(f"its last index, {int(indices[-1])}, is outside a tensor of {n}")
    return indices


def best_rice(numbers: Tensor, total: int) -> Rice:
    """The Rice parameter that makes `numbers` (int32, 0 or more, of sum `total`) shortest."""
    count = numbers.numel()
    middle = max(1, int(math.log2(max(total / count * math.log(2), 2))))
    tried = range(middle - 1, middle + 2)
    costs = dict(zip(tried, (torch.stack([(numbers >> b).sum() for b in tried])).tolist()))
    costs = {b: Rice(count, b, zeros) for b, zeros in costs.items()}

    def cost(b: int) -> int:
        if b not in costs:
            costs[b] = Rice(count, b, int((numbers >> b).sum()))
        return costs[b].n_bits

    best = min(tried, key=cost)
    while best > 0 and cost(best - 1) < cost(best):
        best -= 1
    while best < MAX_WIDTH - 1 and cost(best + 1) < cost(best):
        best += 1
    return costs[best]


def write_rice(numbers: Tensor, rice: Rice) -> list[Tensor]:
    """The two planes of `numbers` (int32)."""
    ones = (numbers >> rice.low_bits).cumsum(0).add_(_counting(rice.count, numbers))
    marks = torch.zeros(rice.count + rice.zeros, dtype=torch.uint8, device=numbers.device)
    marks[ones] = 1
    return [pack(numbers & (2**rice.low_bits - 1), rice.low_bits), pack(marks, 1)]


def read_rice_sums(planes: list[Tensor], rice: Rice, n: int) -> Tensor:
    """Cumulative sums of (number + 1), less 1, of two planes (int64, strictly increasing): of gaps, the indices.

    Raises IndexFault if the ones are not as many as the numbers, or the zeros more than numbers of sum n have.
    """
    if rice.zeros << rice.low_bits > n:
        raise IndexFault(f"its gaps add up to more than a tensor of {n}")
    ones = places(unpack(planes[1], rice.count + rice.zeros, 1).view(torch.bool))
    if ones.numel() != rice.count:
        raise IndexFault(f"it holds {ones.numel()} gaps in place of {rice.count}")
    counting = _counting(rice.count, ones)
    sums = ones.sub_(counting).bitwise_left_shift_(rice.low_bits).add_(counting)
    return sums.add_(unpack(planes[0], rice.count, rice.low_bits).cumsum(0)) if rice.low_bits else sums


def _runs(gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Of gaps between indices: those before each run, less the 1 that every run but the first must have, and the runs' lengths less 1."""
    begins = gaps != 0
    begins[0] = True
    where = places(begins)
    starts = gaps[where]
    starts[1:] -= 1
    ends = torch.cat([where[1:], where.new_tensor([gaps.numel()])])
    return starts, (ends - where - 1).to(torch.int32)


def _decode_runs(form: IndexForm, planes: list[Tensor], n: int, k: int) -> Tensor:
    """Each run's place, repeated over its entries, and counted up."""
    starts = read_rice_sums(planes[:2], form.gaps, n)  # Σ (number + 1) - 1; a run's start also has the runs before it below it
    ends = read_rice_sums(planes[2:], form.lengths, k).add_(1)
    if int(ends[-1]) != k:
        raise IndexFault(f"its runs hold {int(ends[-1])} indices in place of {k}")
    lengths = ends.diff(prepend=ends.new_zeros(1))
    return starts.repeat_interleave(lengths, output_size=k).add_(_counting(k, starts))


def _counting(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)
