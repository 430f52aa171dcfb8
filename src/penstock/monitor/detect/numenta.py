"""The Numenta score: how early and how rarely a detector of anomalies speaks, over labelled series.

Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark" (arXiv 1510.03336), and the standard profile
of the benchmark. Each anomaly has a window. Only the first detection in a window counts, and more the earlier it comes:

    sigma(y) = 2 / (1 + exp(5 y)) - 1,    y = -1 at the window's first row, just below 0 at its last, growing to the right of it

A window without a detection costs `FALSE_NEGATIVE`. Every detection outside of windows costs `FALSE_POSITIVE` times `sigma` of its distance from
the window before it in widths of that window, all of it where none came before or it is further than three widths. Detections in the first rows of
a file (`probation`), in which a detector may learn, do not count. The sum over files is normalised: 0 for a detector that says nothing, 100 for one
that speaks at the first row of every window and nowhere else. As in the benchmark's code a hit at a window's first row is worth exactly one (the
paper's text leaves it at 0.987). Cost: linear in rows. When not to use it: to choose thresholds that must hold false alarms down, since one false
alarm costs a ninth of a missed window here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from penstock.config.errors import UserError

#: The standard profile: weights of a missed window and of a detection outside of windows; a hit weighs one.
FALSE_NEGATIVE, FALSE_POSITIVE = 1.0, 0.11

#: Share of a file in which detections do not count, and the most rows of it.
PROBATION_SHARE, PROBATION_ROWS = 0.15, 750


@dataclass(frozen=True)
class Series:
    """A labelled series: its values, and the first and last row of every window of an anomaly."""

    name: str
    values_t: np.ndarray
    windows: tuple[tuple[int, int], ...]

    @property
    def probation(self) -> int:
        """Rows at the beginning in which detections do not count."""
        return min(int(PROBATION_SHARE * len(self.values_t)), PROBATION_ROWS)


def sigma(position: float) -> float:
    """What a detection is worth at a position in widths of a window, 0 at its end; -1 to 1."""
    return -1.0 if position > 3.0 else 2.0 / (1.0 + float(np.exp(5.0 * position))) - 1.0


def raw_score(series: Series, detections: Sequence[int]) -> float:
    """The sum of what detections (rows, ascending) and missed windows of one series are worth, before normalisation."""
    counted = [row for row in detections if row >= series.probation]
    total = 0.0
    for first, last in series.windows:
        inside = [row for row in counted if first <= row <= last]
        total += sigma(-(last - inside[0] + 1) / (last - first + 1)) / sigma(-1.0) if inside else -FALSE_NEGATIVE
    return total + sum(FALSE_POSITIVE * _outside(series, row) for row in counted)


def score(found: Sequence[tuple[Series, Sequence[int]]]) -> float:
    """The score of detections over all series, up to 100; 0 is that of a detector that says nothing."""
    windows = sum(len(series.windows) for series, _ in found)
    if not windows:
        raise UserError("no series has a labelled window, so a Numenta score means nothing: give labelled ones")
    raw = sum(raw_score(series, detections) for series, detections in found)
    silent = -FALSE_NEGATIVE * windows
    return 100.0 * (raw - silent) / (windows - silent)


def read_benchmark(folder: Path) -> list[Series]:
    """All series below `folder/data` with their windows from `folder/labels/combined_windows.json`.

    Raises `UserError` where the labels or a file cannot be read.
    """
    labels = folder / "labels" / "combined_windows.json"
    try:
        windows = json.loads(labels.read_text(encoding="utf-8"))
        files = sorted((folder / "data").glob("*/*.csv"))
        return [_read(file, windows[f"{file.parent.name}/{file.name}"]) for file in files]
    except (OSError, ValueError, KeyError) as error:
        needs = "it needs labels/combined_windows.json and data/*/*.csv"
        raise UserError(f"{folder} is no copy of the Numenta Anomaly Benchmark ({error}): {needs}") from None


def _read(file: Path, windows: list[list[str]]) -> Series:
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [(datetime.fromisoformat(row["timestamp"]), float(row["value"])) for row in csv.DictReader(lines)]
    times = [time for time, _ in rows]
    # Times that repeat when clocks are put back: the first row of a time counts, as in the benchmark's code.
    spans = tuple((times.index(datetime.fromisoformat(first)), times.index(datetime.fromisoformat(last))) for first, last in windows)
    return Series(f"{file.parent.name}/{file.stem}", np.array([value for _, value in rows]), spans)


def _outside(series: Series, row: int) -> float:
    """What a detection outside of windows is worth, -1 to 0; 0 inside of one."""
    if any(first <= row <= last for first, last in series.windows):
        return 0.0
    before = [(first, last) for first, last in series.windows if last < row]
    if not before:
        return -1.0
    first, last = before[-1]
    return sigma((row - last) / (last - first))
