"""Torch's distributed checkpoint: flat tensors by logical name, written by the library and read for it.

Writing is the library's `save`, on one process, with a planner that fetches each tensor when its turn comes: the state is never in memory as
a whole, and there is one `.distcp` file a tensor, since the library holds all tensors of a file. Whoever loads it
(`torch.distributed.checkpoint.load`, torchtitan) gives a dictionary of tensors with these names, of any sharding.

Reading is ours, because the library unpickles: see `dcp_metadata.py`. Tensors may have been written by any number of ranks; each is put together
from its parts. Cost: the disk's. Memory: the largest tensor.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penstock.config import UserError
from penstock.store.formats.dcp_metadata import METADATA, Item, StoredTensor, read_metadata
from penstock.store.formats.foreign import Described, Foreign, Read

__all__ = ["METADATA", "read_dcp", "write_dcp"]


def write_dcp(folder: Path, described: Described, read: Read) -> None:
    """Write tensors as a checkpoint into an empty folder, each read when its turn comes; raises OSError of the disk."""
    from penstock.store.formats.dcp_writer import save_checkpoint  # which imports torch's compiler

    save_checkpoint(folder, described, read)


def read_dcp(folder: Path) -> Foreign:
    """Open a checkpoint's folder; raises `UserError` where it is damaged or asks for anything to be run."""
    return _Checkpoint(folder)


class _Checkpoint(Foreign):
    def __init__(self, folder: Path) -> None:
        self.label = str(folder)
        self._folder = folder
        self._tensors, self.others = read_metadata(folder)
        self.described = {name: (stored.shape, getattr(torch, stored.dtype)) for name, stored in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """As `Foreign.read`."""
        stored = self._tensors[name]
        if len(stored.items) == 1:
            return self._part(name, stored, stored.items[0])
        whole = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
        covered = torch.zeros(stored.shape, dtype=torch.bool)
        for item in stored.items:
            box = tuple(slice(start, start + size) for start, size in zip(item.offsets, item.sizes))
            whole[box], covered[box] = self._part(name, stored, item), True
        if not covered.all():
            raise UserError(f"{self.label} is damaged: its parts of {name} overlap; save the checkpoint again")
        return whole

    def _part(self, name: str, stored: StoredTensor, item: Item) -> Tensor:
        file = self._folder / item.file
        try:
            with open(file, "rb") as stream:
                stream.seek(item.start)
                data = stream.read(min(item.length, file.stat().st_size))
            part: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}), which holds a part of {name}; copy the checkpoint again") from None
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise UserError(f"{file} is damaged, or holds more than a tensor, where a part of {name} should be ({first}); save it again") from None
        if not isinstance(part, Tensor) or tuple(part.shape) != item.sizes or part.dtype != getattr(torch, stored.dtype):
            raise UserError(f"{file} holds something else than {stored.dtype} {item.sizes} where a part of {name} should be; save it again")
        return part.detach()
