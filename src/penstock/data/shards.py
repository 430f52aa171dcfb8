"""Prepared tokens on disk, opened for reading.

A folder of the cache holds

    manifest.json          shards with their lengths and checksums, counts, the split; written last
    tokenizer/             what `load_tokenizer` reads
    sources.json           paths of the corpus's files, for messages
    train-00000.tokens …   one shard a span and split: unsigned 16- or 32-bit ids, little-endian
    train.starts           first token of each document, int64
    train.places           (source, line or row) of each document, int64

Everything is memory-mapped: opening costs no memory, ranks on a host share pages. Opening reads all of it once against
the XXH3 checksums (about 5 GB/s from the page cache, else the disk's speed), so a damaged shard is found before it is trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from penstock.config import UserError
from penstock.data.files import checksum
from penstock.data.tokenizer import Tokenizer, load_tokenizer

MANIFEST = "manifest.json"
SOURCES = "sources.json"


class TokenStream:
    """One split's tokens as one long sequence, documents following each other, each with its end token."""

    def __init__(self, folder: Path, name: str, shards: list[dict[str, Any]], dtype: str) -> None:
        """Map the shards (`file`, `tokens` each) of split `name`; they have been verified before."""
        self.folder, self.name, self.label = folder, name, name
        filled = [shard for shard in shards if shard["tokens"]]
        self._shards = [np.memmap(folder / shard["file"], dtype=dtype, mode="r") for shard in filled]
        self._ends = np.cumsum([shard["tokens"] for shard in filled], dtype=np.int64)
        self._starts = _map_int64(folder / f"{name}.starts")
        self._places = _map_int64(folder / f"{name}.places").reshape(-1, 2)

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def n_documents(self) -> int:
        """Number of documents with tokens in this stream."""
        return len(self._starts)

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens `start` to `start + length - 1`, int64; raises `IndexError` outside the stream."""
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} are outside the {len(self)} tokens of the {self.label} text")
        out = np.empty(length, dtype=np.int64)
        done = 0
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while done < length:
            offset = start + done - (int(self._ends[shard - 1]) if shard else 0)
            part = self._shards[shard][offset : offset + length - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out

    def documents(self, start: int, length: int) -> np.ndarray:
        """For each of the tokens its document, int32, numbered from 0 at the first token's document."""
        first = int(np.searchsorted(self._starts, start, side="right"))
        after = int(np.searchsorted(self._starts, start + length - 1, side="right"))
        borders = np.concatenate([[start], self._starts[first:after], [start + length]])
        return np.repeat(np.arange(len(borders) - 1, dtype=np.int32), np.diff(borders))

    def document_at(self, token: int) -> tuple[int, int, int]:
        """The document that a token belongs to: its number, its first token, and that of the next one."""
        document = int(np.searchsorted(self._starts, token, side="right")) - 1
        end = int(self._starts[document + 1]) if document + 1 < len(self._starts) else len(self)
        return document, int(self._starts[document]), end

    def place_of(self, document: int) -> str:
        """Where a document comes from, such as 'books/a.jsonl, line 12'."""
        source, position = (int(v) for v in self._places[document])
        path, kind = self._sources[source]
        return path + {"jsonl": f", line {position}", "parquet": f", row {position}"}.get(kind, "")

    def locate(self, token: int) -> str:
        """Where a token comes from, such as 'books/a.jsonl, line 12 (train document 3)', for messages."""
        document, _, _ = self.document_at(token)
        return f"{self.place_of(document)} ({self.label} document {document})"

    @cached_property
    def _sources(self) -> list[tuple[str, str]]:
        return [(path, kind) for path, kind in json.loads((self.folder / SOURCES).read_text(encoding="utf-8"))]


@dataclass(frozen=True)
class TokenCorpus:
    """A prepared corpus: tokenizer, both splits, and what is known of them.

    `digest` identifies tokens, document borders and tokenizer, wherever the text lies; `split` is 'document' or 'tail'.
    """

    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream
    digest: str
    split: str
    folder: Path
    summary: dict[str, Any]


def open_corpus(folder: Path) -> TokenCorpus:
    """Verify and map a prepared corpus; raises `UserError` that names the damaged file and the mend."""
    manifest = _read_manifest(folder)
    for file, digest in manifest["checksums"].items():
        _verify(folder, file, digest)
    tokenizer = load_tokenizer(folder / "tokenizer")
    if tokenizer.digest() != manifest["tokenizer"]:
        raise _damaged(folder, "tokenizer", "it is not the one the tokens were made with")
    train, validation = (TokenStream(folder, name, manifest["shards"][name], manifest["dtype"]) for name in ("train", "validation"))
    return TokenCorpus(tokenizer, train, validation, manifest["digest"], manifest["split"], folder, manifest["summary"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {key: manifest[key] for key in ("checksums", "tokenizer", "shards", "dtype", "digest", "split", "summary")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, MANIFEST, f"{type(error).__name__}: {error}") from None


def _verify(folder: Path, file: str, expected: str) -> None:
    try:
        found = checksum(folder / file)
    except OSError as error:
        raise _damaged(folder, file, error.strerror or "it cannot be read") from None
    if found != expected:
        raise _damaged(folder, file, f"its checksum is {found}, not {expected}")


def _damaged(folder: Path, file: str, why: str) -> UserError:
    return UserError(f"token shard {folder / file} is damaged ({why}); delete the folder {folder} and run again, and it is prepared anew")


def _map_int64(file: Path) -> np.ndarray:
    return np.memmap(file, dtype="<i8", mode="r") if file.stat().st_size else np.zeros(0, dtype=np.int64)
