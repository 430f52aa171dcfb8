"""What a metric is: its unit, how its ranks are put together, what it means and what a bad value looks like; found by the metric's name.

A kind's pattern is a glob over `quantity/where`, such as `grad_norm/layer.*.ffn`; the first that matches counts, so the particular stand before the
general. A run keeps the kinds that its ranks were measured by (`RUN/metrics/catalogue.json`), so a copy of it is read as it was meant wherever it is.
Cost: one match a pattern for each new name, then a look-up. When not to use it: for values themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

#: How a step's value is made of its ranks' values: their mean, their sum, the root of the sum of their squares, or the lowest rank's.
Together = Literal["spread", "sum", "root", "same"]
FILE = "catalogue.json"


@dataclass(frozen=True)
class Kind:
    """One entry of the catalogue; `pattern` is a glob over names, `unit` is s, bytes, nats, tokens or 1, say, and `bad` what should worry."""

    pattern: str
    unit: str
    together: Together
    meaning: str
    bad: str


#: What a metric is that no catalogue knows.
UNKNOWN = Kind("*", "", "spread", "not in the catalogue", "")


class Kinds:
    """Finds a metric's kind by its name."""

    def __init__(self, kinds: Iterable[Kind] = ()) -> None:
        self.all = tuple(kinds)
        self._found: dict[str, Kind] = {}

    def of(self, name: str) -> Kind:
        """The first kind whose pattern matches; `UNKNOWN` if none does."""
        if name not in self._found:
            self._found[name] = next((kind for kind in self.all if fnmatchcase(name, kind.pattern)), UNKNOWN)
        return self._found[name]


def write_kinds(folder: Path, kinds: Iterable[Kind]) -> None:
    """Keep a run's catalogue with its metrics; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (FILE + ".partial")
    partial.write_text(json.dumps([asdict(kind) for kind in kinds], indent=1), encoding="utf-8")
    partial.replace(folder / FILE)


def read_kinds(folder: Path) -> Kinds | None:
    """The catalogue that a run was measured by; None if it keeps none, or a damaged one."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        entries = json.loads((folder / FILE).read_text(encoding="utf-8"))
        kinds = [Kind(**entry) for entry in entries]
        if all(kind.together in get_args(Together) for kind in kinds):
            return Kinds(kinds)
    return None
