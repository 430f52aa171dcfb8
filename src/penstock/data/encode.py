"""The second pass: one span of text becomes one token shard per split.

Tokens are written as they come, so memory does not grow with the span. Beside each shard lies a table of the documents that have
tokens in it: (first token, source, position), int64, relative to shard and span; `build.py` joins the tables. The record that
says a span is done is written last, after its shards are flushed to disk, which is what resuming relies on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from penstock.data.documents import Piece
from penstock.data.files import checksum, write_json
from penstock.data.split import SPLITS
from penstock.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 256 << 10


def token_dtype(vocab_size: int) -> str:
    """Format of the shards: unsigned 16 bits where the vocabulary allows, else 32, little-endian."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def shard_name(split: str, span: int) -> str:
    """File name of the tokens of a span."""
    return f"{split}-{span:05}.tokens"


def table_name(split: str, span: int) -> str:
    """File name of the documents of a span."""
    return f"{split}-{span:05}.documents"


def record_name(span: int) -> str:
    """File name of the record that a span is done."""
    return f"span-{span:05}.json"


def encode_span(
    routed: Iterable[tuple[int, Piece]], tokenizer: Tokenizer, folder: Path, span: int, report: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """Tokenize the routed pieces of a span into `folder`; return, per split, tokens, documents and checksums of its shard.

    Documents end with the tokenizer's end token, where it has one. `report` is told of characters done.
    """
    writers = [_ShardWriter(folder, split, span, token_dtype(tokenizer.vocab_size)) for split in SPLITS]
    try:
        for batch in _batches(routed):
            for (split, piece), ids in zip(batch, tokenizer.encode_batch([piece.text for _, piece in batch]), strict=True):
                writers[split].add(ids, piece, tokenizer.end_id)
            report(sum(len(piece.text) for _, piece in batch))
        record = {split: writer.finish() for split, writer in zip(SPLITS, writers, strict=True)}
    finally:
        for writer in writers:
            writer.discard()
    write_json(folder / record_name(span), record)
    return record


def intact(folder: Path, span: int, record: dict[str, dict[str, Any]]) -> bool:
    """Whether the shards that a span's record tells of are there and whole."""
    for split in SPLITS:
        for name, digest in ((shard_name(split, span), "checksum"), (table_name(split, span), "table_checksum")):
            file = folder / name
            if not file.is_file() or checksum(file) != record[split][digest]:
                return False
    return True


def _batches(routed: Iterable[tuple[int, Piece]]) -> Iterable[list[tuple[int, Piece]]]:
    batch, characters = [], 0
    for item in routed:
        batch.append(item)
        characters += len(item[1].text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _ShardWriter:
    """Streams one split's tokens and document table of one span to disk."""

    def __init__(self, folder: Path, split: str, span: int, dtype: str) -> None:
        self._targets = (folder / shard_name(split, span), folder / table_name(split, span))
        self._partials = tuple(target.with_name(f"{target.name}.{os.getpid()}.tmp") for target in self._targets)
        self._files = tuple(open(partial, "wb") for partial in self._partials)  # noqa: SIM115 (closed in finish or discard)
        self._digests = (xxhash.xxh3_64(), xxhash.xxh3_64())
        self._dtype = dtype
        self._tokens = self._documents = 0
        self._current = (-1, -1)

    def add(self, ids: np.ndarray, piece: Piece, end_id: int | None) -> None:
        """Append a piece's tokens, and the end token if the piece ends its document."""
        if (piece.source, piece.position) != self._current:
            self._current = (piece.source, piece.position)
            self._write(1, np.array([self._tokens, *self._current], dtype="<i8"))
            self._documents += 1
        if piece.last and end_id is not None:
            ids = np.append(ids, end_id)
        self._write(0, ids.astype(self._dtype))
        self._tokens += len(ids)

    def finish(self) -> dict[str, Any]:
        """Flush both files to disk and give them their names."""
        for file, partial, target in zip(self._files, self._partials, self._targets, strict=True):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(partial, target)
        return {
            "tokens": self._tokens,
            "documents": self._documents,
            "checksum": self._digests[0].hexdigest(),
            "table_checksum": self._digests[1].hexdigest(),
        }

    def discard(self) -> None:
        """Remove what was not finished."""
        for file, partial in zip(self._files, self._partials, strict=True):
            with suppress(OSError):  # closing flushes, which fails again where the disk is full
                file.close()
            partial.unlink(missing_ok=True)

    def _write(self, which: int, array: np.ndarray) -> None:
        data = array.tobytes()
        self._digests[which].update(data)
        self._files[which].write(data)
