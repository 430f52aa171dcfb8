"""Writing torch's distributed checkpoint by its own library, tensor by tensor.

A file of its own, imported when something is written: the library imports torch's compiler, which takes longer than all else that a command imports.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_saver import save

from penstock.store.formats.foreign import Described, Read


def save_checkpoint(folder: Path, described: Described, read: Read) -> None:
    """Write tensors into an empty folder, each read when its turn comes; raises OSError of the disk."""
    outline = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in described.items()}
    with warnings.catch_warnings(action="ignore"):  # that only one process saves is meant
        save(outline, storage_writer=FileSystemWriter(folder, single_file_per_rank=False), planner=_OneByOne(read), no_dist=True)


class _OneByOne(DefaultSavePlanner):
    """Plans with tensors that have no values, and hands these out when they are written."""

    def __init__(self, read: Read) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._read = read

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """The tensor to write."""
        return self._read(write_item.index.fqn).contiguous()
