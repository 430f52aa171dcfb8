"""A process that dies at any one of its file operations: what it did before stays on the disk, and nothing after.

`deaths` runs an action again and again, each time on a fresh copy of a folder, and ends it at the first, second, … operation that touches the folder:
opening a file to write, writing (half of it is done), flushing, renaming, removing, making a folder, cutting off. What follows in the same process,
`finally` blocks too, can change nothing any more, as if it had been killed. With `power=True` the machine dies: what was not flushed of a file is
lost as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

_WRITES = os.O_WRONLY | os.O_RDWR


class Killed(BaseException):
    """The process has ended."""


class Disk:
    """Counts the operations below `root`, and dies at number `at`."""

    def __init__(self, root: Path, at: int, power: bool) -> None:
        self.root, self.at, self.power = str(root), at, power
        self.operations: list[str] = []
        self.dead = False
        self._files: dict[int, str] = {}
        self._flushed: dict[str, int] = {}  # bytes of a file that a loss of power leaves

    def step(self, what: str, path: str, half: Callable[[], object] = lambda: None) -> None:
        """One operation is about to happen."""
        if not path.startswith(self.root):
            return
        if self.dead:
            raise Killed
        self.operations.append(f"{what} {path.removeprefix(self.root)}")
        if len(self.operations) > self.at:
            half()
            self.dead = True
            for file, size in self._flushed.items() if self.power else ():
                if Path(file).exists() and Path(file).stat().st_size > size:
                    os.truncate(file, size)
            raise Killed

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the operating system."""
        real_open, real_write, real_close, real_fsync, real_replace = os.open, os.write, os.close, os.fsync, os.replace

        def open_(path, flags, *rest, **named):
            if flags & _WRITES:
                self.step("open", os.fspath(path))
            descriptor = real_open(path, flags, *rest, **named)
            self._files[descriptor] = os.fspath(path)
            if flags & _WRITES:
                self._flushed.setdefault(os.fspath(path), os.fstat(descriptor).st_size)
            return descriptor

        def write(descriptor, data):
            path = self._files.get(descriptor, "")
            self.step("write", path, lambda: real_write(descriptor, bytes(data)[: len(data) // 2]))
            return real_write(descriptor, data)

        def fsync(descriptor):
            path = self._files.get(descriptor, "")
            self.step("fsync", path)
            real_fsync(descriptor)
            self._flushed[path] = os.fstat(descriptor).st_size

        def replace(source, target):
            self.step("rename", os.fspath(target))
            real_replace(source, target)
            self._flushed[os.fspath(target)] = self._flushed.pop(os.fspath(source), 1 << 62)

        def close(descriptor):
            self._files.pop(descriptor, None)
            real_close(descriptor)

        for name, fake in {"open": open_, "write": write, "fsync": fsync, "replace": replace, "close": close}.items():
            patch.setattr(os, name, fake)
        for name in ("unlink", "mkdir", "truncate"):
            patch.setattr(os, name, self._before(name, getattr(os, name)))
        real_cut = os.ftruncate
        patch.setattr(os, "ftruncate", lambda descriptor, size: (self.step("cut", self._files.get(descriptor, "")), real_cut(descriptor, size)))

    def _before(self, what: str, real: Callable[..., object]) -> Callable[..., object]:
        def operation(path, *rest, **named):
            if not (self.dead and what == "truncate"):
                self.step(what, os.fspath(path))
            return real(path, *rest, **named)

        return operation


def deaths(before: Path, work: Path, act: Callable[[Path], object], power: bool = False) -> Iterator[tuple[Path, str]]:
    """Let `act` die at each of its operations on a copy of `before` below `work`; gives the copy and the operation. At least one, else it fails."""
    for at in range(10_000):
        folder = work / f"death-{at}"
        shutil.copytree(before, folder)
        disk = Disk(folder, at, power)
        with pytest.MonkeyPatch.context() as patch:
            disk.patch(patch)
            with suppress(Killed):
                act(folder)
        if not disk.dead:
            assert at > 0, "the action touches no file"
            return
        yield folder, disk.operations[-1]
        shutil.rmtree(folder)
    raise AssertionError("the action does not come to an end")
