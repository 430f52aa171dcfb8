"""The few verbs that the store needs of a place for files: a folder of this machine, or any URL that fsspec opens.

    read    bytes, or a part of them          create, write   a file that appears whole and on the disk, or not at all
    names, sizes   what lies in a folder      remove          at most a file

A local file is written beside its name as `.partial`, flushed to the disk, renamed, and its folder flushed, so whoever reads, and whatever
crashes, sees the old file or the new one. A bucket shows an object when its upload ends. Names are relative, with `/`, and checked before
they are used, since some come from files: none can leave the folder.

Cost: two flushes of the disk for each file. When not to use it: for a file that grows (`story/history.py` appends to its own).
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from penstock.config import UserError, disk_errors, sync_folder

PARTIAL = ".partial"


class Stream(Protocol):
    """What `create` hands out: a file being written, from its beginning to its end."""

    def write(self, data: bytes | memoryview) -> object:
        """Append bytes."""


class Folder(ABC):
    """A place for files by relative name. All verbs raise `UserError` for a name that leaves it, and for a place that refuses."""

    #: How messages call it: a path or a URL.
    label: str

    @abstractmethod
    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """`size` bytes from `start` (None: all that follow; fewer where the file ends). Raises FileNotFoundError, or OSError of the disk."""

    @abstractmethod
    def create(self, name: str) -> AbstractContextManager[Stream]:
        """A stream to a new file, which replaces one of that name when the block ends well and leaves nothing behind otherwise."""

    @abstractmethod
    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of the files directly in folder `prefix` by full name, in order; none if there is no such folder."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def settle(self, prefix: str) -> None:
        """Bring removals in folder `prefix` to the disk, before what comes next."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Folder) and self.label == other.label

    def __hash__(self) -> int:
        return hash(self.label)

    def names(self, prefix: str = "") -> list[str]:
        """Full names of the files directly in folder `prefix`, in order; those of files half-written end in `.partial`."""
        return list(self.sizes(prefix))

    def write(self, name: str, data: bytes) -> None:
        """Replace a file by `data`."""
        with self.create(name) as stream:
            stream.write(data)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True


def checked(name: str) -> str:
    """`name`, if it is a relative name that stays below its folder; raises `UserError` otherwise."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in name or not name.isprintable():
        raise UserError(f"{name!r} is not a name inside a run's folder; the file that says so was not written by Penstock")
    return name


class LocalFolder(Folder):
    """A folder of this machine's, or of a disk that all nodes share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = str(path)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """As `Folder.read`."""
        descriptor = os.open(self._at(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe put in its place must not hang us
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a plain file", name)
            wanted = max(0, found.st_size - start) if size is None else min(size, max(0, found.st_size - start))
            return _read_all(descriptor, wanted, start)
        finally:
            os.close(descriptor)

    @contextmanager
    def create(self, name: str) -> Iterator[Stream]:
        """As `Folder.create`."""
        final = self._at(name)
        partial = final.with_name(final.name + PARTIAL)
        with disk_errors(self.path, f"writing {name}"):
            self._make(final.parent)
            stream = _LocalStream(partial)
            try:
                yield stream
                stream.close()
                os.replace(partial, final)
                sync_folder(final.parent)
            except BaseException:
                with suppress(OSError):
                    stream.abandon()
                    os.unlink(partial)
                raise

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """As `Folder.sizes`."""
        lead = f"{checked(prefix)}/" if prefix else ""
        with suppress(FileNotFoundError), os.scandir(self.path / prefix) as entries:
            found = {lead + entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            return dict(sorted(found.items()))
        return {}

    def names(self, prefix: str = "") -> list[str]:
        """As `Folder.names`; without asking the disk for every file's size."""
        lead = f"{checked(prefix)}/" if prefix else ""
        with suppress(FileNotFoundError), os.scandir(self.path / prefix) as entries:
            return sorted(lead + entry.name for entry in entries if entry.is_file())
        return []

    def size(self, name: str) -> int:
        """As `Folder.size`."""
        return os.stat(self._at(name)).st_size

    def remove(self, name: str) -> None:
        """As `Folder.remove`."""
        with disk_errors(self.path, f"removing {name}"), suppress(FileNotFoundError):
            os.unlink(self._at(name))

    def settle(self, prefix: str) -> None:
        """As `Folder.settle`."""
        if (self.path / checked(prefix)).is_dir():
            sync_folder(self.path / prefix)

    def _at(self, name: str) -> Path:
        return self.path / checked(name)

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make(folder.parent)
            with suppress(FileExistsError):  # another rank was quicker
                os.mkdir(folder)
            sync_folder(folder.parent)


def open_folder(where: str | Path) -> Folder:
    """The folder at a path or URL; it need not exist. Raises `UserError` for a URL of an unknown kind, or whose library is missing."""
    if isinstance(where, Path) or "://" not in where:
        return LocalFolder(Path(where))
    from penstock.store.places.bucket import open_url

    return open_url(where)


class _LocalStream:
    """Unbuffered: the writer's blocks are large."""

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, all of them."""
        assert self._descriptor is not None
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def close(self) -> None:
        """Flush to the disk, and end."""
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        self.abandon()

    def abandon(self) -> None:
        """End, whatever is on the disk."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def _read_all(descriptor: int, size: int, start: int) -> bytes:
    """`size` bytes from `start`; the system hands out at most 2 GiB at a time."""
    data = os.pread(descriptor, size, start)
    if len(data) == size or not data:
        return data
    return data + _read_all(descriptor, size - len(data), start + len(data))
