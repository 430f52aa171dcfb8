"""What differs between two snapshots: settings, code, environment, data, layout, metrics, and tensors by the digests of their cells.

All of it is in the two manifests, so nothing but them is read, whatever the size of the state: cells are cut by logical position, and equal
content has one digest in every layout. How far tensors are apart is another question, which reads both (`difference.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from penstock.store.snapshots.manifest import Manifest

#: Parts of a manifest's `about` that are compared name by name.
PARTS = ("config", "environment", "data", "layout", "metrics")


@dataclass(frozen=True)
class Change:
    """A named value before and after; None where there is none."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class CodeChange:
    """A checkout's state before and after, as recorded (commit, branch, changed files, digest of the diff); None where there was none."""

    checkout: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @property
    def same(self) -> bool:
        """Whether the same code ran: one commit and one diff, which is whole."""
        if self.before is None or self.after is None:
            return False
        same = all(self.before.get(key) == self.after.get(key) for key in ("commit", "diff"))
        return same and bool(self.before.get("commit")) and not self.before.get("diff_cut")


@dataclass(frozen=True)
class TensorChanges:
    """Tensors by whether their content is the same; `reshaped` are those whose shape or dtype differs."""

    equal: list[str]
    differ: list[str]
    reshaped: list[Change]
    only_before: list[str]
    only_after: list[str]


@dataclass(frozen=True)
class SnapshotDiff:
    """What differs between two snapshots; `parts` has of each of `PARTS` the changed values by dotted name."""

    parts: dict[str, list[Change]]
    code: list[CodeChange]
    tensors: TensorChanges

    @property
    def same_state(self) -> bool:
        """Whether every tensor is the same, bit for bit."""
        tensors = self.tensors
        return not (tensors.differ or tensors.reshaped or tensors.only_before or tensors.only_after)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        parts = {part: {change.name: [change.before, change.after] for change in changes} for part, changes in self.parts.items()}
        code = {change.checkout: {"same": change.same, "before": change.before, "after": change.after} for change in self.code}
        return parts | {"code": code, "tensors": asdict(self.tensors), "same_state": self.same_state}


def compare(before: Manifest, after: Manifest) -> SnapshotDiff:
    """What differs from one snapshot to another."""
    parts = {part: changes(before.about.get(part, {}), after.about.get(part, {})) for part in PARTS}
    codes = [_mapping(manifest.about.get("code")) for manifest in (before, after)]
    code = [CodeChange(name, codes[0].get(name), codes[1].get(name)) for name in sorted(codes[0].keys() | codes[1].keys())]
    return SnapshotDiff(parts, code, compare_tensors(before, after))


def compare_tensors(before: Manifest, after: Manifest) -> TensorChanges:
    """Which tensors are the same, by the digests of their cells."""
    found = TensorChanges([], [], [], [], [name for name in after.tensors if name not in before.tensors])
    for name, entry in before.tensors.items():
        other = after.tensors.get(name)
        if other is None:
            found.only_before.append(name)
        elif (other.shape, other.dtype) != (entry.shape, entry.dtype):
            found.reshaped.append(Change(name, [list(entry.shape), entry.dtype], [list(other.shape), other.dtype]))
        else:
            (found.equal if other.cells == entry.cells else found.differ).append(name)
    return found


def changes(before: Any, after: Any) -> list[Change]:
    """The leaves of two trees that differ, by dotted name."""
    old, new = flat(before), flat(after)
    return [Change(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree's leaves by dotted name; lists are leaves."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {name: leaf for key, value in tree.items() for name, leaf in flat(value, f"{prefix}{key}.").items()}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
