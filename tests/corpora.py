"""Data settings and random text for tests of the data room."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from penstock.config import DataSection


def data_section(path: object, cache_dir: Path, **changes: object) -> DataSection:
    """Settings of a corpus with byte tokens, cached in `cache_dir`."""
    return DataSection(**({"path": str(path), "tokenizer": "bytes", "cache_dir": str(cache_dir)} | changes))


def random_text(n_bytes: int, seed: int) -> str:
    """About `n_bytes` of lines of words, some with characters of two to four bytes and some indented."""
    rng, words = random.Random(seed), _words()
    lines, size = [], 0
    while size < n_bytes:
        line = "  " * rng.choice((0, 0, 0, 1, 2)) + " ".join(rng.choices(words, k=rng.randint(0, 14)))
        lines.append(line)
        size += len(line.encode()) + 1
    return "\n".join(lines) + "\n"


@cache
def _words() -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(2000)] + ["naïve", "日本", "😀", "Ω"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative name."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
