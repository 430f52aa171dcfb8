"""A cell's numbers as a payload and back: byte planes, packed by zstandard.

Numbers are taken as unsigned integers of their own width, cut into planes of bytes (all lowest bytes, all second ones, …), and each is compressed by
itself, as the bytes of one significance resemble each other. Against a base, what is cut is the difference of the two integers modulo 2^bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import zstandard
from torch import Tensor

Kind = Literal["lossless", "bounded"]
MAX_BYTES = 1 << 26  # of a cell
LEVEL = 1


class CodecError(ValueError):
    """A payload that is damaged or was not made for this cell; it says in what way."""


@dataclass(frozen=True)
class Encoded:
    """A cell's codec by name, its payload, and what that will decode to: the cell itself, or for bounded error a tensor near it."""

    codec: str
    payload: bytes
    content: Tensor


def encode(cell: Tensor, base: Tensor | None = None, kind: Kind = "lossless", quality: float = 0.0) -> Encoded:
    """The payload of a flat contiguous CPU tensor, against the content of the same cell in the parent snapshot if `base` is given.

    Raises ValueError for tensors that are not flat, differ in dtype or length, or are larger than a cell may be.
    """
    if cell.dim() != 1 or not cell.is_contiguous() or cell.device.type != "cpu" or cell.nbytes > MAX_BYTES:
        raise ValueError(f"need a flat contiguous CPU tensor of at most {MAX_BYTES} bytes, got {tuple(cell.shape)} of {cell.dtype}")
    if base is not None and (base.dtype != cell.dtype or base.shape != cell.shape):
        raise ValueError(f"need a base like the cell, got {tuple(base.shape)} of {base.dtype} for {tuple(cell.shape)} of {cell.dtype}")
    bytes_nb = cell.view(torch.uint8).view(cell.numel(), cell.element_size())
    if base is not None:
        bytes_nb = bytes_nb ^ base.view(torch.uint8).view(bytes_nb.shape)
    planes = bytes_nb.t().contiguous().numpy().tobytes()
    return Encoded("planes" if base is None else "planes-xor", zstandard.ZstdCompressor(LEVEL).compress(planes), cell)


def decode(codec: str, payload: bytes, dtype: torch.dtype, count: int, base: Tensor | None = None) -> Tensor:
    """The flat tensor of `count` numbers that a payload holds; `base` is the content it was encoded against.

    Raises CodecError for payloads that are damaged, cut off, of an unknown codec, or of another count or dtype.
    """
    if codec not in ("planes", "planes-xor"):
        raise CodecError(f"there is no codec {codec!r}")
    size = dtype.itemsize
    try:
        planes = zstandard.ZstdDecompressor().decompress(payload, max_output_size=max(count * size, 1)) if count else b""
    except zstandard.ZstdError as error:
        raise CodecError(f"damaged payload: {error}") from None
    if len(planes) != count * size:
        raise CodecError(f"damaged payload: {len(planes)} bytes in place of {count * size}")
    if not count:
        return torch.empty(0, dtype=dtype)
    bytes_nb = torch.frombuffer(bytearray(planes), dtype=torch.uint8).view(size, count).t().contiguous()
    if codec == "planes-xor":
        if base is None:
            raise CodecError("an increment cannot be read without its base")
        bytes_nb ^= base.view(torch.uint8).view(bytes_nb.shape)
    return bytes_nb.view(-1).view(dtype)
