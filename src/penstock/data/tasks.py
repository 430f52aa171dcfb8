"""What a preparing process is asked to do, as plain data: survey a span, encode it, or train a BPE tokenizer on many.

A task travels as one line of JSON, so no pickle is involved, and running it in this process or another gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from penstock.config import UserError
from penstock.data.bpe import draw_sample, train_bpe
from penstock.data.corpus import Source
from penstock.data.documents import pieces
from penstock.data.encode import encode_span
from penstock.data.spans import Segment
from penstock.data.split import TRAIN, Split
from penstock.data.survey import survey_span
from penstock.data.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Task:
    """Survey span number `span`, or encode it into `folder` with its `split` where they are given.

    `sources[i]` is the file that `segments[i]` is a range of; the tokenizer is in `folder/tokenizer`.
    """

    span: int
    segments: tuple[Segment, ...]
    sources: tuple[Source, ...]
    text_field: str
    folder: str = ""
    split: Split | None = None

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class TrainTask:
    """Train a BPE tokenizer of `vocab` tokens on the training side of `spans` (tasks with a split) and save it into `folder`.

    A task, because training may take half a GiB, which a process of its own gives back.
    """

    spans: tuple[Task, ...]
    vocab: int
    folder: str

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def parse_task(line: str) -> Task | TrainTask:
    """Read what `line` wrote."""
    tree = json.loads(line)
    if "spans" in tree:
        return TrainTask(tuple(_task(span) for span in tree["spans"]), tree["vocab"], tree["folder"])
    return _task(tree)


def run_task(task: Task | TrainTask, report: Callable[[int], None]) -> dict[str, Any]:
    """Do `task` and return its counts (nothing for training); `report` is told of bytes (survey) or characters (encode) done.

    Raises `UserError` for bad text and for files that changed since they were listed, `OSError` where the disk fails.
    """
    if isinstance(task, TrainTask):
        train_bpe(draw_sample(_training_text(span) for span in task.spans), task.vocab).save(Path(task.folder))
        return {}
    _check_unchanged(task.sources)
    if task.split is None:
        result = survey_span(task.segments, task.sources, task.text_field, report).tree()
    else:
        folder = Path(task.folder)
        routed = task.split.route(pieces(task.segments, task.sources, task.text_field))
        result = encode_span(routed, _tokenizer(str(folder / "tokenizer")), folder, task.span, report)
    _check_unchanged(task.sources)
    return result


def _training_text(span: Task) -> Iterator[str]:
    assert span.split is not None
    for side, piece in span.split.route(pieces(span.segments, span.sources, span.text_field)):
        if side == TRAIN:
            yield piece.text


def _task(tree: dict[str, Any]) -> Task:
    tree["segments"] = tuple(Segment(**segment) for segment in tree["segments"])
    tree["sources"] = tuple(Source(**source) for source in tree["sources"])
    tree["split"] = Split(**tree["split"]) if tree["split"] else None
    return Task(**tree)


def _check_unchanged(sources: tuple[Source, ...]) -> None:
    for source in sources:
        try:
            stat = os.stat(source.path)
        except OSError as error:
            raise UserError(f"cannot read {source.path} any more: {error.strerror}; run again once nothing moves the corpus") from None
        if (stat.st_size, stat.st_mtime_ns) != (source.size, source.mtime_ns):
            raise UserError(f"{source.path} changed while it was being prepared; run again once nothing writes to it")


@lru_cache(maxsize=1)
def _tokenizer(folder: str) -> Tokenizer:
    return load_tokenizer(folder)
