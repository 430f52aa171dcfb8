"""A store's folder at any URL that fsspec opens: buckets, other machines, memory.

Uploads are fsspec's own, not committed until the block that writes has ended well, so a file is there whole or not at all. Listings and sizes are
asked of the other side each time. Libraries for single kinds are not ours to require: an URL whose library is missing says which one to install.

Cost: a request for each verb. When not to use it: to train into; snapshots are written to a local disk, and pushed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from penstock.config import UserError
from penstock.store.places.folder import Folder, LocalFolder, Stream, checked

#: Kinds that have no folders to make; making one would make a bucket.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"}
_EXTRAS = {"s3": "penstock[s3]", "s3a": "penstock[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}


def open_url(url: str) -> Folder:
    """The folder at a URL; raises `UserError` for a kind that fsspec does not know, or whose library is missing."""
    kind = url.partition("://")[0]
    try:
        system, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url} needs a library that is not installed: pip install '{_EXTRAS.get(kind, str(error))}'") from None
    except ValueError as error:
        raise UserError(f"{url} is not a URL that fsspec opens ({error}); use a path, or s3://…, gs://…, sftp://…") from None
    return LocalFolder(Path(root)) if kind in ("file", "local") else UrlFolder(url.rstrip("/"), system, root.rstrip("/"), kind)


class UrlFolder(Folder):
    """A folder of a file system of fsspec's."""

    def __init__(self, label: str, system: Any, root: str, kind: str) -> None:
        self.label, self._system, self._root, self._kind = label, system, root, kind

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """As `Folder.read`."""
        if size == 0:
            return b""
        with self._told("reading", name):
            return self._system.cat_file(self._at(name), start=start, end=None if size is None else start + size)

    @contextmanager
    def create(self, name: str) -> Iterator[Stream]:
        """As `Folder.create`."""
        path = self._at(name)
        with self._told("writing", name):
            if self._kind not in _BUCKETS:
                self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            stream = self._system.open(path, "wb", autocommit=False)
            try:
                yield stream
                stream.close()
                stream.commit()
            except BaseException:
                with suppress(Exception):
                    stream.discard()
                    stream.closed = True  # else some libraries end the upload when they forget the stream
                raise
            self._system.invalidate_cache()

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """As `Folder.sizes`."""
        lead = f"{checked(prefix)}/" if prefix else ""
        with suppress(FileNotFoundError), self._told("listing", prefix):
            entries = self._system.ls(f"{self._root}/{prefix}".rstrip("/"), detail=True, refresh=True)
            found = {lead + entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}
            return dict(sorted(found.items()))
        return {}

    def size(self, name: str) -> int:
        """As `Folder.size`."""
        with self._told("looking at", name):
            return self._system.size(self._at(name))

    def remove(self, name: str) -> None:
        """As `Folder.remove`."""
        with suppress(FileNotFoundError), self._told("removing", name):
            self._system.rm_file(self._at(name))

    def settle(self, prefix: str) -> None:
        """As `Folder.settle`; the other side does."""

    def _at(self, name: str) -> str:
        return f"{self._root}/{checked(name)}"

    @contextmanager
    def _told(self, doing: str, name: str) -> Iterator[None]:
        """Libraries of many authors raise many kinds of errors; all but a missing file are told as one of ours."""
        try:
            yield
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:
            what = str(error) or type(error).__name__
            raise UserError(f"{doing} {name or 'files'} of {self.label} failed: {what}; see that you may, and try again") from error
