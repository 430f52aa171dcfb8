"""Values as few bits: plain floats, or small integers (or float8) times a scale for every block of 64 values.

- `float32`, `bf16`: a cast, round to nearest even; what would become infinite becomes the largest finite number.
- `fp8` (e4m3: 448 at most), `int8`, `int4` (±127, ±7): the block's scale is its largest magnitude over the format's, as bf16; a value is
  x / scale to the nearest (ties to even), so the error is at most half a scale (fp8: half a unit in the last place, 1/16 of the value).
- `int2`: a sign, and which of two magnitudes: the mean of the block's magnitudes that reach their mean, and the mean of the others. Of normal values
  it loses about an eighth of the energy, near the least that two bits can (0.1175: Max 1960); one scale alone loses far more.

A block whose scale would be below the least normal float32 becomes zeros, so a block of zeros is harmless, and no result depends on whether
the processor flushes denormals. What bytes decode to is one product of two floats a value: identical on every rank. Sums are of whole numbers, so
the bytes too are the same whatever the device. Bits a value, scales included: 32, 16, 8.25, 8.25, 4.25, 2.5.

Do not use int2 for values most of which are zeros: it has no zero of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

from penstock.comm.codec.bits import pack, packed_bytes, unpack

ValuesFormat = Literal["float32", "bf16", "fp8", "int8", "int4", "int2"]
BLOCK = 64
TINY = torch.finfo(torch.float32).tiny
FRACTION = 17  # bits of a magnitude relative to its block's largest, in sums: so few that float32 adds a block of them exactly, in any order


class ValueCode(IntEnum):
    """A message's number for each format."""

    float32 = 0
    bf16 = 1
    fp8 = 2
    int8 = 3
    int4 = 4
    int2 = 5


@dataclass(frozen=True)
class _Form:
    width: int  # bits of a value
    scales: int  # bf16 numbers a block
    largest: float = 0.0  # magnitude of the format


FORMS = {
    ValueCode.float32: _Form(32, 0), ValueCode.bf16: _Form(16, 0), ValueCode.fp8: _Form(8, 1, 448.0), ValueCode.int8: _Form(8, 1, 127.0),
    ValueCode.int4: _Form(4, 1, 7.0), ValueCode.int2: _Form(2, 2),
}  # fmt: skip


def value_sections(code: ValueCode, count: int) -> list[int]:
    """Bytes of each plane that `encode_values` makes of `count` values: scales first, where there are any."""
    form = FORMS[code]
    values = packed_bytes(count, form.width) if form.width <= 8 else count * form.width // 8
    return [2 * form.scales * -(-count // BLOCK), values] if form.scales else [values]


def encode_values(values: Tensor, code: ValueCode) -> list[Tensor]:
    """The planes (uint8) of finite float32 values."""
    if code is ValueCode.float32:
        return [values.contiguous().view(torch.uint8)]
    if code is ValueCode.bf16:
        return [_to_bf16(values).view(torch.uint8)]
    blocks = torch.nn.functional.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    if code is ValueCode.int2:
        return _encode_int2(blocks, values.numel())
    form = FORMS[code]
    scales = _scales(blocks.abs().amax(1), form.largest)
    steps = blocks / torch.where(scales > 0, scales.float(), torch.inf).unsqueeze(1)  # zeros where there is no scale
    if code is ValueCode.fp8:
        numbers = steps.clamp_(-form.largest, form.largest).to(torch.float8_e4m3fn).view(torch.uint8)
    else:
        numbers = steps.round_().clamp_(-form.largest, form.largest).to(torch.int8).view(torch.uint8)  # two's complement
    if form.width < 8:
        numbers &= 2**form.width - 1
    return [scales.view(torch.uint8), pack(numbers.view(-1)[: values.numel()], form.width)]


def decode_values(planes: list[Tensor], code: ValueCode, count: int) -> Tensor:
    """The float32 values of `value_sections(code, count)` bytes; a writer's are finite, those of other bytes need not be."""
    if code is ValueCode.float32:
        return planes[0].view(torch.float32).clone()
    if code is ValueCode.bf16:
        return planes[0].view(torch.bfloat16).float()
    form = FORMS[code]
    numbers = unpack(planes[1], count, form.width)
    scales = planes[0].view(torch.bfloat16).float()
    if code is ValueCode.int2:
        return _decode_int2(numbers, scales)
    if code is ValueCode.fp8:
        values = numbers.view(torch.float8_e4m3fn).float()
    elif code is ValueCode.int8:
        values = numbers.view(torch.int8).float()
    else:
        values = ((numbers << 4).view(torch.int8) >> 4).float()  # brings the sign to its place, and back over the bits between
    return _times_blocks(values, scales)


def _to_bf16(values: Tensor) -> Tensor:
    most = torch.finfo(torch.bfloat16).max
    return values.clamp(-most, most).to(torch.bfloat16)


def _scales(largest_b: Tensor, most: float) -> Tensor:
    """A bf16 scale a block: its largest magnitude over the format's, such that no product with it is infinite and none needs denormals."""
    top = torch.tensor(torch.finfo(torch.float32).max / most)
    top = (top.view(torch.int32) & -65536).view(torch.float32).item()  # towards zero in bf16
    quotients = largest_b / torch.full_like(largest_b, most)  # a device may turn division by a plain number into a product
    scales = quotients.clamp_(max=top).to(torch.bfloat16)
    return torch.where(scales >= TINY, scales, torch.zeros_like(scales))


def _times_blocks(values: Tensor, scales_b: Tensor) -> Tensor:
    whole = values.numel() // BLOCK
    values[: whole * BLOCK].view(whole, BLOCK).mul_(scales_b[:whole, None])
    values[whole * BLOCK :] *= scales_b[whole:]
    return values


def _encode_int2(blocks: Tensor, count: int) -> list[Tensor]:
    magnitudes = blocks.abs()
    largest = magnitudes.amax(1)
    parts = magnitudes / torch.where(largest >= TINY, largest, torch.inf).unsqueeze(1)
    parts = parts.mul_(2**FRACTION).round_()
    inside = torch.full_like(largest, BLOCK)
    inside[-1:] = (count - 1) % BLOCK + 1
    total = parts.sum(1)
    high = parts * inside.unsqueeze(1) >= total.unsqueeze(1)
    n_high = high.sum(1)
    total_high = (parts * high).sum(1)
    if count % BLOCK:  # padding neither is high nor counts as low
        n_high[-1] = high[-1, : count % BLOCK].sum()
    means = torch.stack([total - total_high, total_high], 1).double() / torch.stack([inside - n_high, n_high], 1).clamp(min=1)
    levels = _to_bf16((means * largest.double().unsqueeze(1) / 2**FRACTION).float())
    levels = torch.where(levels >= TINY, levels, torch.zeros_like(levels))
    numbers = high.to(torch.uint8) | (blocks < 0).to(torch.uint8) << 1
    return [levels.view(-1).view(torch.uint8), pack(numbers.view(-1)[:count], 2)]


def _decode_int2(numbers: Tensor, scales: Tensor) -> Tensor:
    levels = scales.view(-1, 2)
    levels = torch.cat([levels, -levels], 1)  # by number: low, high, -low, -high
    count = numbers.numel()
    padded = torch.nn.functional.pad(numbers, (0, -count % BLOCK)).view(-1, BLOCK)
    return levels.gather(1, padded.long()).view(-1)[:count]
