"""Numbers of a few bits packed into bytes by tensor operations, on the CPU and on CUDA alike.

A number of `width` bits is cut into `width // 8` whole bytes, each a plane of its own, and a rest of fewer than 8 bits. The rests are laid out in
*lanes*: the list is cut into L = 8 / gcd(8, rest) equal stretches, and one number of each stretch, L × rest bits, a whole number of bytes, are
put together. So every operation runs along contiguous memory, where the usual order (neighbours side by side) would need gathers. At most L - 1
numbers of padding are stored.

Cost: about 2 byte operations a number. Bytes are little-endian, as are all processors that torch supports.
"""

from __future__ import annotations

from math import gcd

import numpy as np
import torch
from torch import Tensor

MAX_WIDTH = 31


def packed_bytes(count: int, width: int) -> int:
    """Bytes that `pack` makes of `count` numbers of `width` bits."""
    lanes, unit = _lanes(width % 8)
    return count * (width // 8) + unit * -(-count // lanes)


def pack(numbers: Tensor, width: int) -> Tensor:
    """Bytes (uint8) of a flat tensor of integers, each 0 or more and less than 2^width; `width` is 0 to 31."""
    if not width:
        return torch.empty(0, dtype=torch.uint8, device=numbers.device)
    whole, rest = divmod(width, 8)
    planes = [(numbers >> (8 * i)).to(torch.uint8) for i in range(whole)]  # keeps the low 8 bits
    if rest:
        planes.append(_pack_rest(numbers >> (8 * whole) if whole else numbers, rest))
    return planes[0] if len(planes) == 1 else torch.cat(planes)


def unpack(data: Tensor, count: int, width: int) -> Tensor:
    """The `count` numbers in the bytes that `pack` made: uint8 up to 8 bits, else int32. `data` must have `packed_bytes(count, width)` bytes."""
    whole, rest = divmod(width, 8)
    if width == 8:
        return data
    top = _unpack_rest(data[whole * count :], count, rest) if rest else data.new_zeros(count)
    if not whole:
        return top
    numbers = top.to(torch.int32)
    for i in reversed(range(whole)):
        numbers = numbers.bitwise_left_shift_(8).bitwise_or_(data[i * count : (i + 1) * count])
    return numbers


def places(mask: Tensor) -> Tensor:
    """Indices (int64) of what is true in a flat bool tensor."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))  # up to five times as fast as torch's
    return mask.nonzero().squeeze(1)


def _lanes(rest: int) -> tuple[int, int]:
    """Stretches that are put together, and the bytes of one number of each."""
    return (8 // gcd(8, rest), rest // gcd(8, rest)) if rest else (1, 0)


def _pack_rest(numbers: Tensor, rest: int) -> Tensor:
    lanes, unit = _lanes(rest)
    columns = -(-numbers.numel() // lanes)
    cells = numbers.to(torch.uint8 if unit == 1 else torch.int64)
    if cells.numel() != lanes * columns:
        cells = torch.nn.functional.pad(cells, (0, lanes * columns - cells.numel()))
    cells = cells.view(lanes, columns)
    packed = cells[0].clone()
    for lane in range(1, lanes):
        packed |= cells[lane] << (lane * rest)
    return packed if unit == 1 else packed.view(torch.uint8).view(columns, 8)[:, :unit].reshape(-1)


def _unpack_rest(data: Tensor, count: int, rest: int) -> Tensor:
    lanes, unit = _lanes(rest)
    columns = -(-count // lanes)
    if unit > 1:
        words = data.new_zeros(columns, 8)
        words[:, :unit] = data.view(columns, unit)
        data = words.view(-1).view(torch.int64)
    cells = data.new_empty((lanes, columns), dtype=torch.uint8)
    for lane in range(lanes):
        cells[lane] = (data >> (lane * rest)) & (2**rest - 1)
    return cells.view(-1)[:count]
