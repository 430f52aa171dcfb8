"""Safetensors: flat tensors by logical name in files of bounded size, with the index that Hugging Face's libraries use.

    model-00001-of-00003.safetensors …    model.safetensors.index.json: {"metadata": {"total_size"}, "weight_map": {name: file}}

Written and read by the library. A tensor is never cut, so a file is larger than `FILE_BYTES` where a tensor is. Reading takes the files of
the index, else all there are; a name in two files is refused. Memory: one file's tensors when writing, one tensor when reading.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from penstock.config import UserError
from penstock.store.formats.foreign import Described, Foreign, Read

INDEX = "model.safetensors.index.json"
FILE_BYTES = 2 << 30
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\.safetensors")
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def write_safetensors(folder: Path, described: Described, read: Read) -> None:
    """Write tensors into an empty folder, each read when its file's turn comes; raises OSError or SafetensorError of the disk."""
    files = _cut(described)
    places: dict[str, str] = {}
    for number, names in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file({name: read(name).contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(map(_bytes, described.values()))}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file in set(places.values()):
        shutil.copymode(folder / INDEX, folder / file)  # which the library would let nobody else read


def read_safetensors(folder: Path) -> Foreign:
    """Open a folder of .safetensors files; raises `UserError` where one is missing or damaged, or two hold a tensor of one name."""
    return _Sharded(folder)


class _Sharded(Foreign):
    def __init__(self, folder: Path) -> None:
        self.label, self.others, self.described = str(folder), [], {}
        self._files: dict[str, Path] = {}
        for file in _files(folder):
            with _opened(file) as stored:
                for name in stored.keys():  # noqa: SIM118 (the library's object has no other way to iterate)
                    if name in self._files:
                        raise UserError(f"{folder}: {self._files[name].name} and {file.name} both hold {name}; keep one, or join its parts first")
                    part = stored.get_slice(name)
                    self._files[name] = file
                    self.described[name] = (tuple(part.get_shape()), _dtype(part.get_dtype(), name, file))

    def read(self, name: str) -> Tensor:
        """As `Foreign.read`."""
        with _opened(self._files[name]) as stored:
            try:
                return stored.get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise UserError(f"{self._files[name]} cannot be read ({error}); copy it again") from None


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(str(file), framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); copy it again") from None


def _dtype(name: str, tensor: str, file: Path) -> torch.dtype:
    if name not in _DTYPES:
        raise UserError(f"{file}: {tensor} has dtype {name}, which no state has; convert it, or leave it out")
    return _DTYPES[name]


def _files(folder: Path) -> list[Path]:
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        wrong = [name for name in names if not _FILE.fullmatch(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} is damaged ({type(error).__name__}: {error}); copy it again") from None
    if wrong:
        raise UserError(f"{folder / INDEX} names {wrong[0]!r}, which is not a file in that folder")
    return [folder / name for name in sorted(names)]


def _cut(described: Described) -> list[list[str]]:
    """Names by file: a new one is begun where it would grow above `FILE_BYTES`."""
    files: list[list[str]] = []
    size = FILE_BYTES + 1
    for name, entry in described.items():
        if size + _bytes(entry) > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(name)
        size += _bytes(entry)
    return files


def _bytes(entry: tuple[tuple[int, ...], torch.dtype]) -> int:
    shape, dtype = entry
    return math.prod(shape) * dtype.itemsize
