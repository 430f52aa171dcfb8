"""The wire format of gradients: one uint8 tensor that says what it holds, checked before anything in it is believed.

    header, 48 bytes | planes of the indices | planes of the values      every plane padded with zeros to 8 bytes

The header (`HEADER`, little-endian): magic, version, index code, value code, low bits of the gaps; n (u32), k (u32), zeros of the gaps (u32); numbers
and zeros of the runs' lengths (u32), their low bits; bytes in all (u64); checksum (u64) of all other words, the header's among them.

`decode` takes bytes from anywhere: it compares the length, the checksum and the sizes that follow from the header with the message before it
allocates anything, and makes no tensor of more than 64 times the message's bytes. Any flipped bit and any cut is noticed (checksum.py); that is a
protection against damage, not against an enemy, whose messages do no more harm than wrong values.

Cost: for CPU tensors see `python -m benchmarks codec`. On CUDA nothing but the header and a few sizes crosses to the host.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from penstock.comm.codec.bits import MAX_WIDTH
from penstock.comm.codec.checksum import checksum
from penstock.comm.codec.indices import MAX_LENGTH, Code, IndexFault, IndexForm, Rice, decode_indices, encode_indices, index_entropy_bits
from penstock.comm.codec.select import NonFiniteError
from penstock.comm.codec.values import ValueCode, ValuesFormat, decode_values, encode_values, value_sections

HEADER = struct.Struct("<4sBBBBIIIIIB3xQQ")
MAGIC = b"PSGX"
VERSION = 1
ALIGN = 8


class MessageError(RuntimeError):
    """A message that is damaged, cut off, or not one of this version; it says which."""


@dataclass(frozen=True)
class Decoded:
    """What a message holds: of a tensor of n entries those at `indices` (sorted int64; None: all n), as float32.

    All indices are below n; that n is the length of the tensor at hand is for the reader to check.
    """

    n: int
    indices: Tensor | None
    values: Tensor


@dataclass(frozen=True)
class _Head:
    n: int
    k: int
    form: IndexForm
    values: ValueCode
    n_bytes: int

    @property
    def sections(self) -> list[int]:
        """Bytes of every plane."""
        return self.form.sections + value_sections(self.values, self.k)


def encode(flat: Tensor, indices: Tensor | None, values_format: ValuesFormat) -> Tensor:
    """The message (uint8, on the tensor's device) of a flat float32 tensor's entries at strictly increasing int64 `indices`, or of all (None).

    Raises NonFiniteError if an entry to be sent is NaN or infinite, ValueError for other kinds of tensors, indices out of order or out of
    range, and tensors of 2^31 entries or more, which must be sent in parts.
    """
    if flat.dtype != torch.float32 or flat.dim() != 1 or flat.numel() > MAX_LENGTH:
        raise ValueError(f"need a flat float32 tensor of less than 2^31 entries, got {tuple(flat.shape)} of {flat.dtype}")
    n = flat.numel()
    if indices is None:
        form, values = IndexForm(), flat
        planes: list[Tensor] = []
    else:
        form, planes = encode_indices(indices, n)
        values = flat[indices]
    if values.numel() and not torch.stack(values.aminmax()).isfinite().all():
        raise NonFiniteError(f"{int((~values.isfinite()).sum())} of the {values.numel()} values to be sent are NaN or infinite")
    code = ValueCode[values_format]
    planes = planes + encode_values(values, code)
    return _assemble(_Head(n, values.numel(), form, code, HEADER.size + sum(map(_aligned, (plane.numel() for plane in planes)))), planes)


def decode(message: Tensor) -> Decoded:
    """What is in a message (a flat uint8 tensor), on its device; raises MessageError, which says what is wrong, if it is not exactly one message."""
    if message.dtype != torch.uint8 or message.dim() != 1:
        raise ValueError(f"a message is a flat uint8 tensor, not {tuple(message.shape)} of {message.dtype}")
    head, stated = _read_header(message)
    if message.storage_offset() % ALIGN or not message.is_contiguous():
        message = message.clone(memory_format=torch.contiguous_format)
    if int(_sum_of(message)) != stated:
        raise MessageError("damaged message: its checksum is wrong")
    sections = head.sections
    starts = list(accumulate((_aligned(size) for size in sections), initial=HEADER.size))
    if starts[-1] != head.n_bytes:
        raise MessageError(f"impossible message: its sizes call for {starts[-1]} bytes, not {head.n_bytes}")
    planes = [message[start : start + size] for start, size in zip(starts, sections)]
    split = len(head.form.sections)
    values = decode_values(planes[split:], head.values, head.k)
    if head.k and not torch.stack(values.aminmax()).isfinite().all():
        raise MessageError("impossible message: a value is NaN or infinite")
    if head.form.code is Code.ALL:
        return Decoded(head.n, None, values)
    try:
        return Decoded(head.n, decode_indices(head.form, planes[:split], head.n, head.k), values)
    except IndexFault as fault:
        raise MessageError(f"impossible message: {fault}") from None


def expected_bytes(n: int, k: int, values_format: ValuesFormat) -> int:
    """Bytes of a message of k of n entries, by the entropy of indices that may lie anywhere; without the header."""
    indices = index_entropy_bits(n, k) / 8 if k < n else 0.0
    return round(indices) + sum(value_sections(ValueCode[values_format], k))


def _assemble(head: _Head, planes: list[Tensor]) -> Tensor:
    message = torch.empty(head.n_bytes, dtype=torch.uint8, device=planes[-1].device)
    message[: HEADER.size] = torch.frombuffer(bytearray(_header(head, 0)), dtype=torch.uint8).to(message.device)
    place = HEADER.size
    for plane in planes:
        message[place : place + plane.numel()] = plane
        end = place + _aligned(plane.numel())
        message[place + plane.numel() : end] = 0
        place = end
    message.view(torch.int64)[HEADER.size // 8 - 1] = _sum_of(message)
    return message


def _header(head: _Head, total: int) -> bytes:
    gaps, lengths = head.form.gaps, head.form.lengths
    return HEADER.pack(
        MAGIC, VERSION, head.form.code, head.values, gaps.low_bits, head.n, head.k, gaps.zeros, lengths.count, lengths.zeros, lengths.low_bits,
        head.n_bytes, total,
    )  # fmt: skip


def _sum_of(message: Tensor) -> Tensor:
    """The checksum over all words but its own."""
    words = message.view(torch.int64)
    own = HEADER.size // 8 - 1
    return checksum(words[:own]) ^ checksum(words[own + 1 :])


def _read_header(message: Tensor) -> tuple[_Head, int]:
    """The header and the stated checksum, as far as they can be trusted before the checksum has been made."""
    if message.numel() < HEADER.size:
        raise MessageError(f"truncated message: {message.numel()} bytes, less than a header's {HEADER.size}")
    fields = HEADER.unpack(bytes(message[: HEADER.size].cpu().numpy()))
    magic, version, code, values, low_bits, n, k, zeros, runs, run_zeros, run_bits, n_bytes, stated = fields
    if magic != MAGIC:
        raise MessageError("not a message: it does not begin as one")
    if version != VERSION:
        raise MessageError(f"message of version {version}; this program reads version {VERSION}")
    if n_bytes != message.numel():
        kind = "truncated message" if message.numel() < n_bytes else "impossible message"
        raise MessageError(f"{kind}: {message.numel()} bytes of {n_bytes}")
    known = code in list(Code) and values in list(ValueCode) and max(low_bits, run_bits) <= MAX_WIDTH
    if not known or n_bytes % ALIGN or not runs <= k <= n <= MAX_LENGTH:
        raise MessageError("impossible message: its header names a code or a size that there is not")
    if code == Code.ALL and k != n:
        raise MessageError(f"impossible message: {k} of {n} values, and no indices")
    count = runs if code == Code.RUNS else k
    if k and not count:
        raise MessageError(f"impossible message: {k} indices in no runs")
    form = IndexForm(Code(code), Rice(count, low_bits, zeros), Rice(runs, run_bits, run_zeros))
    return _Head(n, k, form, ValueCode(values), n_bytes), stated - 2**64 if stated >= 2**63 else stated


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
