"""Finding the files of a corpus: from the user's `data.path` to an ordered list of sources.

`data.path` names a file, a folder (walked recursively), a glob, `stdlib` (the Python standard library's own source, which
every machine has) or `hf:NAME` (fetched once into a Parquet file, see `hub.py`). The order is that of the relative names,
so the same folder gives the same corpus on every machine. What a document is depends on the kind of source: a text file is
one document, and so is a line of a .jsonl file and a row of a .parquet file.

In a folder or glob, files with an extension known as text are taken and must be UTF-8; files with any other extension are
taken if their first 8 KiB are UTF-8 without NUL bytes, and else skipped and counted. Hidden files and folders are left out.

Cost: one `stat` a file, and a read of 8 KiB for unknown extensions.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.config import DataSection, UserError, nearest
from penstock.data.hub import hub_file

SNIFF_BYTES = 8192
TEXT_EXTENSIONS = frozenset((
    ".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm", ".xml", ".csv", ".tsv", ".json", ".yaml",
    ".yml", ".toml", ".ini", ".cfg", ".log", ".py", ".pyi", ".pyx", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu", ".cuh",
    ".java", ".kt", ".scala", ".js", ".mjs", ".ts", ".jsx", ".tsx", ".go", ".rs", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".swift",
    ".m", ".mm", ".cs", ".fs", ".hs", ".ml", ".mli", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el", ".scm", ".sh", ".bash", ".zsh",
    ".fish", ".ps1", ".sql", ".css", ".scss", ".cmake", ".mk", ".proto", ".tf", ".vim", ".zig", ".nim", ".d", ".f90", ".asm", ".s", ".v",
    ".sv", ".vhdl",
))  # fmt: skip
ROW_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
#: Parts of the standard library that are tests, generated tables, help texts or graphical programs, not exemplary source.
STDLIB_NOISE = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "turtledemo", "pydoc_data", "encodings", "ensurepip")
)


@dataclass(frozen=True)
class Source:
    """One file of a corpus; `kind` is 'text', 'jsonl' or 'parquet', `size` in bytes, times in ns."""

    path: str
    kind: str
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class Corpus:
    """The ordered, non-empty sources of a corpus and how many files were left out as binary or empty."""

    sources: tuple[Source, ...]
    skipped_binary: int
    skipped_empty: int


def corpus_path(data: DataSection) -> str:
    """`data.path` in the form that means the same from any working folder: absolute, or 'stdlib' and 'hf:NAME' as they are."""
    if data.path == "stdlib" or data.path.startswith("hf:"):
        return data.path
    return os.path.abspath(os.path.expanduser(data.path))


def find_corpus(data: DataSection, cache: Path) -> Corpus:
    """List the sources of `data.path`; raises `UserError` where it is missing, empty or holds no text."""
    path = corpus_path(data)
    if path == "stdlib":
        return _listed(_stdlib_files(), path)
    if path.startswith("hf:"):
        return _listed([hub_file(path, data.text_field, cache)], path)
    if os.path.isfile(path):
        return _single(path)
    if os.path.isdir(path):
        return _listed(_walk(path), path)
    if glob.has_magic(path):
        return _listed(_matches(path), path)
    raise UserError(
        f"data.path = {data.path!r} does not exist (looked for {path}){_near_name(path)}; "
        "give a file, a folder, a glob, 'stdlib' or 'hf:NAME'"
    )


def _single(path: str) -> Corpus:
    source = _source(path, Path(path).suffix.lower())
    if source.size == 0:
        raise UserError(f"{path} is empty; give a file with text in it")
    return Corpus((source,), 0, 0)


def _listed(paths: Iterable[str], origin: str) -> Corpus:
    sources, binary, empty = [], 0, 0
    for path in paths:
        extension = Path(path).suffix.lower()
        source = _source(path, extension)
        if source.size == 0:
            empty += 1
        elif source.kind != "text" or extension in TEXT_EXTENSIONS or _looks_like_text(path):
            sources.append(source)
        else:
            binary += 1
    if not sources:
        raise UserError(
            f"data.path = {origin!r} holds no text: {empty} empty and {binary} binary files were left out; "
            "give UTF-8 text, Markdown, source code, .jsonl or .parquet"
        )
    return Corpus(tuple(sources), binary, empty)


def _source(path: str, extension: str) -> Source:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable or take it out of the corpus") from None
    return Source(path, ROW_KINDS.get(extension, "text"), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _walk(root: str, skip: frozenset[str] = frozenset()) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        found += [os.path.join(folder, name) for name in files if not name.startswith(".")]
    return sorted((path for path in found if os.path.isfile(path)), key=lambda path: Path(path).relative_to(root).as_posix())


def _matches(pattern: str) -> list[str]:
    """Files that match, and those in matching folders, each once."""
    found = set()
    for path in glob.glob(pattern, recursive=True):
        found.update(_walk(path) if os.path.isdir(path) else [path])
    return sorted(path for path in found if os.path.isfile(path))


def _stdlib_files() -> Iterator[str]:
    root = sysconfig.get_path("stdlib")
    files = [path for path in _walk(root, STDLIB_NOISE) if path.endswith(".py")]
    if not files:
        raise UserError(f"this Python has no source of its standard library in {root}; set data.path to a text of yours")
    return iter(files)


def _looks_like_text(path: str) -> bool:
    """Whether the first bytes are UTF-8 (the last character may be cut) without NUL."""
    try:
        with open(path, "rb") as file:
            head = file.read(SNIFF_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable or take it out of the corpus") from None
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) < SNIFF_BYTES or error.start < len(head) - 3:
            return False
    return b"\0" not in head


def _near_name(path: str) -> str:
    parent = os.path.dirname(path)
    return nearest(os.path.basename(path), os.listdir(parent)) if os.path.isdir(parent) else ""
