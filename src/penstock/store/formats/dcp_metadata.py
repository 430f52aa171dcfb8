"""Reading the `.metadata` of torch's distributed checkpoint without letting it run anything.

That file is a pickle, and unpickling calls whatever a pickle names. There is no other description of the checkpoint's layout, so it is
unpickled here in a way that has nothing to call:

- `find_class`, through which every name in a pickle must go, knows the pairs of module and name in `_RECORDS`, `_VALUES` and
  `ITEM_BYTES` (dtypes) exactly (no dots, no prefixes, no modules as a whole) and refuses all others by name.
- What it hands out are never the named objects. The checkpoint's classes become bare records that keep the state they are given; `torch.Size`,
  paths, layouts and memory formats become functions made for that one call that return tuples and strings; dtypes become their names. No code
  of torch's or of the pickle's runs, and nothing that a pickle does to them (it may set attributes) outlasts the call.
- There are no persistent ids, and the file's size is bounded.

What comes out is checked again as data: types, boxes inside their tensors, names of files without folders. The tensors' own items in the `.distcp`
files are read by `torch.load(weights_only=True)`, whose unpickler is torch's own of this kind.

As torch 2.11 to 2.15 write it. Cost: as unpickling, some microseconds an entry.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from penstock.config import UserError
from penstock.store.cells.chunks import ITEM_BYTES

METADATA = ".metadata"
MAX_BYTES = 1 << 30
_FORMAT = "torch.distributed.checkpoint.metadata"
_RECORDS = frozenset((
    (_FORMAT, "Metadata"), (_FORMAT, "TensorStorageMetadata"), (_FORMAT, "BytesStorageMetadata"), (_FORMAT, "ChunkStorageMetadata"),
    (_FORMAT, "TensorProperties"), (_FORMAT, "MetadataIndex"), (_FORMAT, "StorageMeta"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
))  # fmt: skip
_VALUES: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    ("torch", "Size"): lambda given: tuple(*given),
    ("torch.serialization", "_get_layout"): lambda given: str(*given),
    (_FORMAT, "_MEM_FORMAT_ENCODING"): lambda given: int(*given),
} | {
    (module, f"{kind}Path"): lambda given: "/".join(map(str, given))
    for module in ("pathlib", "pathlib._local")
    for kind in ("Posix", "Windows", "PurePosix", "PureWindows")
}
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Item:
    """A rectangular part of a tensor, and the bytes of a file that hold it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint: full shape, dtype by torch's name, and its parts."""

    shape: tuple[int, ...]
    dtype: str
    items: tuple[Item, ...]


def read_metadata(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of a checkpoint's folder by name, and the names of its entries that are no tensors.

    Raises `UserError` for a file that is missing, too large, or not such a metadata, naming what in it is refused.
    """
    file = folder / METADATA
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file} has {file.stat().st_size} bytes, more than any checkpoint's metadata needs; it was not read")
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); name the folder of a torch distributed checkpoint") from None
    try:
        return _described(_Reader(io.BytesIO(data)).load())
    except UserError as error:
        raise UserError(f"{file} {error}") from None
    except Exception as error:  # a damaged pickle fails in as many ways as there are
        raise UserError(f"{file} is damaged, or no checkpoint's metadata ({type(error).__name__}: {error}); save the checkpoint again") from None


class _Record:
    """What stands for an object of torch's: only its fields."""

    kind = ""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def field(self, name: str) -> Any:
        """One field; raises `UserError` if the record has none of that name."""
        state = getattr(self, "state", None)
        if not isinstance(state, dict) or name not in state:
            _refuse(f"{self.kind} has no {name}")
        return state[name]


class _Reader(pickle.Unpickler):
    """Unpickles records, names and numbers."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for a name that a checkpoint's metadata has; raises `UserError` for any other."""
        if (module, name) in _RECORDS:
            return type(name, (_Record,), {"kind": name})
        if (module, name) in _VALUES:
            make = _VALUES[module, name]
            return lambda *given: make(given)
        if module == "torch" and name in ITEM_BYTES:
            return name
        return _refuse(f"names {module}.{name}, which has no place in a checkpoint's metadata; nothing of it was run")

    def persistent_load(self, identity: Any) -> NoReturn:
        """Always refused: metadata has no such thing."""
        _refuse("names an object outside the file")


def _described(metadata: Any) -> tuple[dict[str, StoredTensor], list[str]]:
    """Check a `Metadata` record and join its two tables."""
    places: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]] = {}
    for index, info in _mapping(_of(metadata, "Metadata").field("storage_data")).items():
        name = _of(index, "MetadataIndex").field("fqn")
        if index.state.get("offset") is not None:  # else it is no tensor's
            places[str(name), _sizes(index.state["offset"])] = _place(info)
    tensors, others = {}, []
    for name, entry in _mapping(metadata.field("state_dict_metadata")).items():
        if not isinstance(name, str):
            _refuse(f"has an entry named {name!r}")
        if isinstance(entry, _Record) and entry.kind == "BytesStorageMetadata":
            others.append(name)
        else:
            tensors[name] = _tensor(name, _of(entry, "TensorStorageMetadata"), places)
    return tensors, others


def _tensor(name: str, entry: _Record, places: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]) -> StoredTensor:
    shape, properties = _sizes(entry.field("size")), _of(entry.field("properties"), "TensorProperties")
    state, chunks = getattr(properties, "state", None), entry.field("chunks")
    if not isinstance(state, tuple) or not state or state[0] not in ITEM_BYTES or not isinstance(chunks, list):
        _refuse(f"does not say of what dtype and in what parts {name} is")
    items = []
    for chunk in chunks:
        offsets, sizes = _sizes(_of(chunk, "ChunkStorageMetadata").field("offsets")), _sizes(chunk.field("sizes"))
        inside = len(shape) == len(offsets) == len(sizes) and all(o + n <= m for o, n, m in zip(offsets, sizes, shape))
        if not inside or (name, offsets) not in places:
            _refuse(f"has no part of {name} at {offsets}, or one outside its shape {shape}")
        item = Item(offsets, sizes, *places[name, offsets])
        if math.prod(sizes) * ITEM_BYTES[state[0]] > item.length:
            _refuse(f"has a part of {name} of {sizes} in {item.length} bytes of {item.file}, which cannot hold it")
        items.append(item)
    if sum(math.prod(item.sizes) for item in items) != math.prod(shape):
        _refuse(f"has parts of {name} that do not make up its shape {shape}")
    return StoredTensor(shape, state[0], tuple(items))


def _place(info: Any) -> tuple[str, int, int]:
    record = _of(info, "_StorageInfo")
    file, start, length = record.field("relative_path"), record.field("offset"), record.field("length")
    if not isinstance(file, str) or not _FILE.fullmatch(file):
        _refuse(f"names {file!r} as a file, which is not in the checkpoint's folder")
    if record.state.get("transform_descriptors"):
        _refuse(f"says that {file} is transformed by {record.state['transform_descriptors']}; save the checkpoint without extensions")
    return file, *_sizes((start, length))  # type: ignore[return-value]


def _of(record: Any, kind: str) -> _Record:
    if not isinstance(record, _Record) or record.kind != kind:
        _refuse(f"has {type(record).__name__} where {kind} belongs")
    return record


def _mapping(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        _refuse("lacks a table")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in value):
        _refuse(f"has {value!r:.80} where sizes belong")
    return value


def _refuse(what: str) -> NoReturn:
    raise UserError(what)
