"""The spans that ranks have written of their last steps: names, starts and lengths, for traces.

A rank writes `RUN/metrics/rank-NNNNN/spans.json`, `{"rank": 3, "spans": [[name, start (unix seconds), seconds], …]}`. Cost: some 3 µs a span. When
not to use it: for how long phases took over a whole run, which the metrics `time/*` tell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from penstock.config import UserError
from penstock.monitor.series.rows import rank_folders

FILE = "spans.json"


@dataclass(frozen=True)
class Span:
    """A stretch of time of a rank; start and end in unix nanoseconds."""

    rank: int
    name: str
    start: int
    end: int


def read_spans(folder: Path) -> tuple[list[Span], list[str]]:
    """The spans of all ranks below a run's `metrics`, and which files are damaged; raises `UserError` if there are none at all."""
    spans: list[Span] = []
    damage: list[str] = []
    for rank, path in rank_folders(folder).items():
        try:
            told = json.loads((path / FILE).read_text(encoding="utf-8"))["spans"]
            spans += [Span(rank, str(name), round(start * 1e9), round((start + seconds) * 1e9)) for name, start, seconds in told]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            damage.append(f"{path / FILE} cannot be read: {error}")
    if not spans:
        why = f" ({'; '.join(damage)})" if damage else ""
        raise UserError(f"{folder} holds no spans{why}; ranks write theirs when they end, or while they train when they are asked")
    return spans, damage


def nested(spans: list[Span]) -> list[tuple[int, Span, bool]]:
    """Beginnings (True) and ends of one rank's spans in order of time; a span that outlasts the one it began in ends with it."""
    events: list[tuple[int, Span, bool]] = []
    open_: list[tuple[int, Span]] = []

    def close(until: float) -> None:
        while open_ and open_[-1][0] <= until:
            end, span = open_.pop()
            events.append((end, span, False))

    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        close(span.start)
        events.append((span.start, span, True))
        open_.append((min(max(span.end, span.start), open_[-1][0] if open_ else span.end), span))
    close(float("inf"))
    return events
