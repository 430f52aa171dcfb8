"""A Hugging Face dataset as a Parquet file in the cache.

`hf:NAME`, `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT`, in the words of `datasets.load_dataset`: the split's text column is
written once to a Parquet file, and from then on the corpus is that file; neither the network nor the `datasets` package is
needed again. Delete the file to fetch the dataset anew. Cost: the text is held twice on disk (the hub's own cache and ours).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from penstock.config import UserError
from penstock.data.files import locked


def hub_file(path: str, text_field: str, cache: Path) -> str:
    """Path of the Parquet file of a dataset (split 'train' unless named), fetched if it is not there yet.

    Raises `UserError` where `datasets` is not installed, the dataset cannot be had, or it lacks `text_field`.
    """
    name, *words = path.removeprefix("hf:").split(":")
    if not name or len(words) > 2:
        raise UserError(f"data.path = {path!r} is not of the form hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    split, config = (words[-1] if words else "train"), (words[0] if len(words) == 2 else None)
    key = hashlib.sha256(f"{path}\n{text_field}".encode()).hexdigest()[:24]
    target = cache / "hub" / f"{key}.parquet"
    if not target.is_file():
        with locked(target.with_suffix(".lock"), None):
            if not target.is_file():
                _export(name, config, split, text_field, target)
    return str(target)


def _export(name: str, config: str | None, split: str, text_field: str, target: Path) -> None:
    try:
        import datasets
    except ImportError:
        raise UserError(f"data.path = 'hf:{name}' needs the 'datasets' package; install it with `pip install penstock[hub]`") from None
    try:
        dataset: Any = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise UserError(f"cannot load dataset {name!r}, split {split!r}, from Hugging Face: {error}; check name and network") from None
    if text_field not in dataset.column_names:
        raise UserError(f"dataset {name!r} has no column {text_field!r}; set data.text_field to one of {', '.join(dataset.column_names)}")
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        dataset.select_columns([text_field]).to_parquet(str(partial))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
