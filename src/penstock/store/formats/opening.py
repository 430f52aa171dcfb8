"""Telling a folder's format by what lies in it."""

from __future__ import annotations

from pathlib import Path

from penstock.config import UserError
from penstock.store.formats.dcp import METADATA, read_dcp
from penstock.store.formats.foreign import Foreign
from penstock.store.formats.sharded import read_safetensors


def open_foreign(folder: Path) -> Foreign:
    """Open a folder of whichever format it is in; raises `UserError` if it is in none."""
    if (folder / METADATA).is_file():
        return read_dcp(folder)
    if any(folder.glob("*.safetensors")):
        return read_safetensors(folder)
    raise UserError(f"{folder} is neither a torch distributed checkpoint (no .metadata in it) nor has it .safetensors files; name such a folder")
