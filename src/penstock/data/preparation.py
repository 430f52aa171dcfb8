"""From text to token shards: find, survey, split, build, open.

Prepared corpora live in the cache under the hash of everything that decides their tokens: the files' paths, sizes and times
(of modification and of last change, in ns), the tokenizer's and the split's settings, and the format's version. One process
prepares, under a file lock; others wait and then open the result. `build.py` says how an interrupted preparation goes on.

Cost: the first time, byte-level BPE takes most of it; afterwards one `stat` a file and the verification of the shards.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from penstock.config import DataSection, UserError, nearest
from penstock.data.bpe import DISTINCT_BYTES, SAMPLE_CHARACTERS
from penstock.data.build import Job, Progress, build, phase, tasks_of
from penstock.data.corpus import Corpus, corpus_path, find_corpus
from penstock.data.files import locked, write_json
from penstock.data.pool import run_tasks
from penstock.data.shards import TokenCorpus, TokenStream, open_corpus
from penstock.data.spans import Span, plan_spans
from penstock.data.split import HELD_OUT, Split, choose_split
from penstock.data.survey import Survey, combine
from penstock.data.tokenizer import Bytes, Tokenizer, load_tokenizer

#: To be raised with every change of what decides spans, tokens or files.
FORMAT_VERSION = 1
#: Below so many bytes of corpus, starting processes costs more than it saves.
SMALL_BYTES = 8 << 20
#: Each process holds 80 to 130 MiB, so that all of them stay below 1 GiB.
MAX_WORKERS = 6


def prepare(data: DataSection, *, progress: Progress | None = None) -> TokenCorpus:
    """Open the token shards of a corpus, preparing them first where they are not in the cache.

    `progress(fraction, text)` is called as work goes on. Raises `UserError` for everything that is wrong with the text, the
    tokenizer, the cache or the disk.
    """
    return _prepare(data, _given_tokenizer(data), None, progress or _silent)


def text_stream(data: DataSection, tokenizer: Tokenizer) -> tuple[TokenStream, int]:
    """All text at `data.path` under a tokenizer that exists already, to be scored, and its size in bytes of UTF-8."""
    corpus = _prepare(data, tokenizer, HELD_OUT, _silent)
    corpus.validation.label = "given"
    return corpus.validation, int(corpus.summary["bytes"])


def cache_folder(data: DataSection) -> Path:
    """Where prepared corpora lie: `data.cache_dir`, else `$XDG_CACHE_HOME/penstock/tokens`, else `~/.cache/penstock/tokens`."""
    if data.cache_dir:
        return Path(data.cache_dir).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home).absolute() / "penstock" / "tokens"


def _prepare(data: DataSection, given: Tokenizer | None, split: Split | None, progress: Progress) -> TokenCorpus:
    cache = cache_folder(data)
    needed = [0]
    with _disk_errors(cache, needed):
        cache.mkdir(parents=True, exist_ok=True)
        corpus = find_corpus(data, cache)
        needed[0] = sum(source.size for source in corpus.sources)
        base = _hash([FORMAT_VERSION, corpus_path(data), data.text_field, data.max_bytes, [asdict(source) for source in corpus.sources]])
        surveys = _surveys(data, corpus, cache / "surveys" / f"{base}.json", progress)
        total = combine(surveys)
        if total.documents == 0:
            raise UserError(f"data.path = {data.path!r} holds no text: all its documents are empty; give files with text in them")
        split = split or choose_split(data, total.documents, total.characters, total.lowest, total.highest)
        folder = cache / _hash([base, given.digest() if given else _recipe(data), asdict(split)])
        if not folder.is_dir():
            with locked(folder.with_suffix(".lock"), lambda: progress(0.0, "waiting for another process that prepares this corpus")):
                if not folder.is_dir():
                    build(Job(data, corpus, _spans(data, corpus), surveys, split, given, folder, _workers(data, total.bytes), progress))
    return open_corpus(folder)


def _surveys(data: DataSection, corpus: Corpus, file: Path, progress: Progress) -> list[Survey]:
    """The survey of each span, from the cache where it has been made before."""
    if not file.is_file():
        with locked(file.with_suffix(".lock"), lambda: progress(0.0, "waiting for another process that reads this corpus")):
            if not file.is_file():
                spans = _spans(data, corpus)
                size = sum(span.weight for span in spans)
                report = phase(progress, 0.0, 0.1, size, "reading")
                results = run_tasks(tasks_of(spans, corpus, data.text_field), _workers(data, size), report)
                write_json(file, results)
    try:
        return [Survey(**tree) for tree in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged; delete it and run again, and it is made anew") from None


def _spans(data: DataSection, corpus: Corpus) -> Sequence[Span]:
    spans = plan_spans(corpus.sources, data.text_field, data.max_bytes)
    if not spans:
        raise UserError(f"data.path = {data.path!r} holds no text within data.max_bytes = {data.max_bytes}; raise it, or give other text")
    return spans


def _given_tokenizer(data: DataSection) -> Tokenizer | None:
    """The tokenizer that exists before the corpus is read; None for those made from the corpus."""
    if data.tokenizer in ("bpe", "chars"):
        return None
    if data.tokenizer == "bytes":
        return Bytes()
    path = Path(data.tokenizer).expanduser()
    if not path.exists():
        kinds = ("bpe", "bytes", "chars")
        raise UserError(
            f"data.tokenizer = {data.tokenizer!r} is no tokenizer and no such file exists{nearest(data.tokenizer, kinds)}; "
            "give 'bpe', 'bytes', 'chars' or the path of a tokenizer.json"
        )
    return load_tokenizer(path)


def _recipe(data: DataSection) -> list[object]:
    return [data.tokenizer, data.vocab, SAMPLE_CHARACTERS, DISTINCT_BYTES] if data.tokenizer == "bpe" else [data.tokenizer]


def _workers(data: DataSection, size: int) -> int:
    if size < SMALL_BYTES:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return data.workers or min(MAX_WORKERS, cores)


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _silent(fraction: float, text: str) -> None:
    """Progress that nobody watches."""


@contextmanager
def _disk_errors(cache: Path, needed: list[int]) -> Iterator[None]:
    """Turn failures of the disk into `UserError`; `needed[0]` is the size of the corpus in bytes, once known."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(cache).free
            raise UserError(
                f"the disk of {cache} is full: preparing this corpus needs up to about {2 * needed[0]} bytes there and {free} are free "
                "(unfinished files were removed); make room, or set data.cache_dir to a folder on another disk"
            ) from None
        if error.filename is None:
            raise
        ours = str(error.filename).startswith(str(cache))
        mend = "make it writable, or set data.cache_dir to another folder" if ours else "make it readable"
        raise UserError(f"cannot use {error.filename}: {error.strerror}; {mend}") from None
