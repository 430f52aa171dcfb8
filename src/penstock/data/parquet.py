"""Reading the text column of Parquet files as a stream of rows, with pyarrow.

Row groups are read through a buffered stream and in small batches, so that memory stays at some MiB whatever the size of a row group.
pyarrow is imported on the first Parquet file only. Cost: decompression, about 1 GB/s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock.config import UserError

BATCH_ROWS = 256
BUFFER_BYTES = 1 << 20


def row_groups(path: str, text_field: str) -> list[tuple[int, int, int]]:
    """(first row, row after the last, uncompressed bytes of the text column) of every row group that has rows.

    Raises `UserError` where the file is no Parquet file or `text_field` is no column of text.
    """
    with _opened(path, text_field) as file:
        metadata = file.metadata
        column = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(text_field)
        groups, start = [], 0
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            if group.num_rows:
                groups.append((start, start + group.num_rows, max(1, group.column(column).total_uncompressed_size)))
            start += group.num_rows
    return groups


def rows(path: str, text_field: str, start: int, end: int) -> Iterator[tuple[int, str | None]]:
    """Yield (row number, text or None) for rows `start` to `end - 1`."""
    import pyarrow as pa

    with _opened(path, text_field) as file:
        first, wanted = _groups_between(file.metadata, start, end)
        row = first
        try:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=wanted, columns=[text_field], use_threads=False):
                for text in batch.column(0).to_pylist():
                    if start <= row < end:
                        yield row, text
                    row += 1
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is damaged near row {row} ({error}); write it again or take it out of the corpus") from None


def _groups_between(metadata: Any, start: int, end: int) -> tuple[int, list[int]]:
    """First row of the row groups that overlap `start:end`, and their numbers."""
    wanted: list[int] = []
    first = row = 0
    for index in range(metadata.num_row_groups):
        after = row + metadata.row_group(index).num_rows
        if after > start and row < end:
            first = first if wanted else row
            wanted.append(index)
        row = after
    return first, wanted


def _opened(path: str, text_field: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); write it again or take it out of the corpus") from None
    schema = file.schema_arrow
    if text_field not in schema.names:
        raise UserError(f"{path} has no column {text_field!r}; set data.text_field to one of {', '.join(schema.names)}")
    kind = schema.field(text_field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"column {text_field!r} of {path} holds {kind}, not text; set data.text_field to a column of strings")
    return file
