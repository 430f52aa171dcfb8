"""What a rank did when: the last spans of its steps in a ring, for a trace that people can look at.

A span is a name, when it began (unix seconds) and how long it took. They are kept as they come, the oldest making room, and written on request as one
JSON file, which replaces the one before whole:

    RUN/metrics/rank-00003/spans.json    {"rank": 3, "spans": [[name, start, seconds], …]}

Times are the host's clock; on CUDA, where kernels run behind it, they say when the work was handed to the device. Cost: 0.3 µs a span in the
training thread, and `MOST_SPANS` of them in memory (about 1 MB); writing happens beside it. When not to use it: for single kernels, which a profiler
sees.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Spans that are kept.
MOST_SPANS = 8192
#: Steps whose spans are kept that come many at a time.
MOST_STEPS = 64
#: Below the run's `metrics`: whoever makes this file asks all ranks for their spans.
REQUEST = "spans-wanted"


class SpanRing:
    """The last spans of one rank."""

    def __init__(self, most: int = MOST_SPANS) -> None:
        self._ring: deque[tuple[str, float, float]] = deque(maxlen=most)
        self._steps: deque[tuple[str, Sequence[tuple[Any, float, float]]]] = deque(maxlen=MOST_STEPS)
        self._shift = time.time() - time.perf_counter()
        self._written = self._asked = time.time()

    def add(self, name: str, start: float, end: float) -> None:
        """A span between two readings of `time.perf_counter`."""
        self._ring.append((name, start, end))

    def add_all(self, kind: str, spans: Sequence[tuple[Any, float, float]]) -> None:
        """The spans of a step, kept as they are and named only when they are written; nobody may change them."""
        self._steps.append((kind, spans))

    def between(self, start: float, end: float) -> list[tuple[str, float, float]]:
        """Name, start (unix seconds) and seconds of single spans that began in a stretch (`time.perf_counter`), ordered by their ends."""
        found = []
        with suppress(RuntimeError):  # one was added meanwhile: later ones than are asked for
            for name, begin, until in reversed(self._ring.copy()):
                if until < start:  # a span is added at its end: no earlier one is in the stretch
                    break
                if start <= begin < end:
                    found.append((name, begin + self._shift, until - begin))
        return found[::-1]

    def unix(self, moment: float) -> float:
        """A reading of `time.perf_counter` in unix seconds, as spans have it."""
        return moment + self._shift

    def placed(self, kind: str, spans: Sequence[tuple[Any, float, float]]) -> list[tuple[str, float, float]]:
        """Spans that come many at a time (`add_all`) as `spans` gives them."""
        return [(f"{kind}.{name}", start + self._shift, end - start) for name, start, end in spans]

    def spans(self) -> list[tuple[str, float, float]]:
        """Name, start (unix seconds) and seconds of the spans that are kept, oldest first; any thread may ask."""
        while True:
            try:
                kept, steps = list(self._ring), list(self._steps)
            except RuntimeError:  # one was added meanwhile
                continue
            kept += [(f"{kind}.{name}", start, end) for kind, spans in steps for name, start, end in spans]
            return sorted(((name, start + self._shift, end - start) for name, start, end in kept), key=lambda span: span[1])

    def write_if_asked(self, folder: Path, rank: int, every_s: float = 0.0) -> None:
        """Write them if somebody asked since the last look, or `every_s` seconds (0: never) have passed; `folder` is the run's `metrics`."""
        asked, now = 0.0, time.time()
        with suppress(OSError):
            asked = (folder / REQUEST).stat().st_mtime
        if asked > self._asked or (every_s and now - self._written >= every_s):
            self.write(spans_file(folder, rank), rank)
            self._written = now
        self._asked = max(self._asked, asked)

    def write(self, path: Path, rank: int) -> bool:
        """Write them into a file; whether the disk took them."""
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"rank": rank, "spans": self.spans()}), encoding="utf-8")
            os.replace(part, path)
            return True
        return False


def spans_file(folder: Path, rank: int) -> Path:
    """Where a rank's spans are written."""
    return folder / f"rank-{rank:05d}" / "spans.json"


def ask_for_spans(folder: Path) -> None:
    """Ask the ranks of a run that trains for their spans; `folder` is the run's `metrics`. They come within seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REQUEST).write_text(f"{time.time()}", encoding="utf-8")
