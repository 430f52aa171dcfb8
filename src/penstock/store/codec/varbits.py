"""Integers of different widths as one string of bits, by array operations, without a loop over them.

The width of each is known to writer and reader alike. Pairs of numbers are put together, one of each half of the list, the second above the bits of
the first; then pairs of pairs, as long as 64 bits hold what they may need: sixteen of up to 4 bits, four of up to 16. Each of these few begins
where those before it end, a cumulative sum of widths, and is shifted to its place in a word of 64 bits; what it has beyond goes to the next word.
Those that begin in the same word are added up by differences of a cumulative sum, as their bits are apart.

Words are little-endian. Cost: a nanosecond or two a number of up to 4 bits, to write or to read.
"""

from __future__ import annotations

import numpy as np

WORD, MOST = 64, 32
KINDS = (np.uint8, np.uint16, np.uint32, np.uint64)
ONE, LAST, SIX = np.uint64(1), np.uint64(63), np.uint64(6)


def write_bits(numbers: np.ndarray, widths: np.ndarray, most: int) -> np.ndarray:
    """Words (uint64) of a list of unsigned numbers, each below 2^width; widths (uint8) are at most `most`, 1 to 32."""
    levels = _levels(widths, most)
    numbers = np.append(numbers, np.zeros(levels[0].size - numbers.size, numbers.dtype))
    for level, below in enumerate(levels[:-1]):
        kind, half = _kind(most << level + 1), below.size // 2
        numbers = numbers[:half].astype(kind) | numbers[half:].astype(kind) << below[:half].astype(kind)
    starts, n_words = _places(levels[-1])
    words = np.zeros(n_words + 2, np.uint64)  # numbers of no bits may begin just behind the last
    if n_words:
        begins, shift = starts >> SIX, starts & LAST
        numbers = numbers.astype(np.uint64)
        last = np.append(np.flatnonzero(begins[1:] != begins[:-1]), begins.size - 1)  # of those that begin in the same word; each word has some
        beyond = (numbers[last] >> ONE) >> (LAST - shift[last])
        sums = np.cumsum(numbers << shift, dtype=np.uint64)[last]
        sums[1:] -= sums[:-1].copy()
        place = begins[last].view(np.int64)
        words[place] = sums
        words[place + 1] |= beyond
    return words[:n_words]


def words_of(widths: np.ndarray) -> int:
    """Words that `write_bits` makes of numbers of these widths."""
    return -(-int(widths.sum(dtype=np.int64)) // WORD)


def read_bits(words: np.ndarray, widths: np.ndarray, most: int) -> np.ndarray:
    """The unsigned numbers in `words_of(widths)` words."""
    levels = _levels(widths, most)
    starts, _ = _places(levels[-1])
    padded = np.append(words, np.zeros(2, np.uint64))
    begins, shift = (starts >> SIX).view(np.int64), starts & LAST
    numbers = padded.take(begins) >> shift
    numbers |= (padded[1:].take(begins) << ONE) << (LAST - shift)
    for level in reversed(range(len(levels) - 1)):
        half, kind = levels[level].size // 2, _kind(most << level)
        pairs, numbers = numbers, np.empty(2 * half, kind)
        numbers[:half] = pairs.astype(kind)
        numbers[half:] = (pairs >> levels[level][:half].astype(pairs.dtype)).astype(kind)
    numbers = numbers[: widths.size]
    numbers &= (numbers.dtype.type(1) << widths.astype(numbers.dtype)) - numbers.dtype.type(1)  # what follows each has come along so far
    return numbers


def _levels(widths: np.ndarray, most: int) -> list[np.ndarray]:
    """Widths, filled up with zeros, and those of pairs, of pairs of pairs and so on."""
    depth = (WORD // most).bit_length() - 1
    levels = [np.append(widths, np.zeros(-widths.size % (1 << depth), np.uint8))]
    for _ in range(depth):
        half = levels[-1].size // 2
        levels.append(levels[-1][:half] + levels[-1][half:])
    return levels


def _kind(width: int) -> type[np.unsignedinteger]:
    """The smallest unsigned integers of so many bits."""
    return KINDS[max((width - 1).bit_length() - 3, 0)]


def _places(widths: np.ndarray) -> tuple[np.ndarray, int]:
    """Where each begins, and the words for all."""
    ends = np.cumsum(widths, dtype=np.uint64)
    total = int(ends[-1]) if ends.size else 0
    return ends - widths, -(-total // WORD)
