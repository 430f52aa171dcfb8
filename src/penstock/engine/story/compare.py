"""Two snapshots beside each other: what differs (`store/story/diff.py`), what they have in common, which samples each has seen, and if asked for, the
code's difference and how far each tensor is apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.plan import Checkout, describe_code
from penstock.plan.code_between import code_between
from penstock.store import Manifest, Snapshot
from penstock.store.cells.contents import Contents
from penstock.store.snapshots.lineage import Link, common_ancestor, lineage
from penstock.store.story.code import read_diff
from penstock.store.story.diff import CodeChange, SnapshotDiff, compare
from penstock.store.story.diff_text import diff_lines, weight_lines
from penstock.store.story.difference import Difference, difference

#: Settings and facts that decide which samples a step takes.
DATA_KEYS = ("data.digest", "run.seed", "batch.global", "model.context")


@dataclass(frozen=True)
class Comparison:
    """Two snapshots and what is said of them; `patches` by checkout and `weights` (the largest first) only where asked for."""

    before: Contents
    after: Contents
    common: Link | None
    diff: SnapshotDiff
    samples: str
    patches: dict[str, str] | None
    weights: list[Difference] | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        told = {"before": identity(self.before), "after": identity(self.after)}
        common = None if self.common is None else {"id": self.common.id, "step": self.common.step}
        told |= {"common": common} | self.diff.as_dict() | {"samples": self.samples}
        told |= {} if self.patches is None else {"patches": self.patches}
        return told if self.weights is None else told | {"weights": [told.as_dict() for told in self.weights]}

    def text(self) -> str:
        """For people."""
        lines = [f"{side}  {headline(contents)}" for side, contents in (("before", self.before), ("after ", self.after))]
        lines += [self._relation(), "", *diff_lines(self.diff), f"samples  {self.samples}"]
        lines += ["", *weight_lines(self.weights)] if self.weights else []
        for checkout, patch in (self.patches or {}).items():
            lines += ["", f"code of {checkout}, from before to after:", patch.rstrip() or "(no difference)"]
        return "\n".join(lines)

    def _relation(self) -> str:
        if self.common is None:
            return "common  no snapshot is known that both go on from"
        for one, other, contents in (("after", "before", self.before), ("before", "after", self.after)):
            if self.common.id == contents.manifest.id:
                return "common  they are one snapshot" if self.before.manifest.id == self.after.manifest.id else f"common  {one} goes on from {other}"
        return f"common  both go on from step {self.common.step}, {self.common.id[:12]}"


def compare_snapshots(before: Snapshot, after: Snapshot, code: bool = False, weights: bool = False) -> Comparison:
    """Hold one snapshot against another; raises `Damaged` if one is."""
    a, b = Contents(before), Contents(after)
    diff = compare(a.manifest, b.manifest)
    common = common_ancestor(lineage(before.folder, a.manifest), lineage(after.folder, b.manifest))
    here = describe_code() if code else {}
    patches = {change.checkout: _patch(change, here.get(change.checkout), before, after) for change in diff.code if not change.same} if code else None
    apart = sorted((difference(a, b, name) for name in diff.tensors.differ), key=lambda told: -told.relative) if weights else None
    return Comparison(a, b, common, diff, samples_of_both(a.manifest, b.manifest, common), patches, apart)


def identity(contents: Contents) -> dict[str, Any]:
    """Which snapshot of which run."""
    manifest = contents.manifest
    return {"run": contents.snapshot.folder.label, "step": manifest.step, "id": manifest.id, "created": manifest.created}


def headline(contents: Contents) -> str:
    """Which snapshot of which run, for people."""
    manifest = contents.manifest
    return f"{contents.snapshot.folder.label}  step {manifest.step}  {manifest.id[:12]}  {manifest.created}"


def samples_of_both(before: Manifest, after: Manifest, common: Link | None) -> str:
    """Which samples two snapshots have been trained on, against each other: a function of corpus, seed, batch and step."""
    keys = [_data_keys(manifest) for manifest in (before, after)]
    changed = [name for name in DATA_KEYS if keys[0][name] != keys[1][name]]
    if changed and common is not None and common.step is not None:
        return f"the same up to step {common.step}, others since, by {', '.join(changed)}"
    if changed:
        return f"others, by {', '.join(changed)}"
    seen = [_drawn(manifest, int(key["batch.global"] or 0)) for manifest, key in zip((before, after), keys)]
    if seen[0] == seen[1]:
        return f"the same {seen[0]:,}"
    more, side = max(seen), "after" if seen[1] > seen[0] else "before"
    return f"the same {min(seen):,}; {side} has {more - min(seen):,} more, numbers {min(seen)} to {more - 1}"


def _drawn(manifest: Manifest, batch: int) -> int:
    """Samples drawn up to a snapshot, whose batches have been of this size since they changed last."""
    return int(manifest.numbers.get("drawn", 0)) + (manifest.step - int(manifest.numbers.get("since", 0))) * batch


def _data_keys(manifest: Manifest) -> dict[str, Any]:
    config, data = manifest.about.get("config") or {}, manifest.about.get("data") or {}
    return {"data.digest": data.get("digest")} | {
        name: (config.get(name.split(".")[0]) or {}).get(name.split(".")[1]) for name in DATA_KEYS[1:]
    }  # fmt: skip


def _patch(change: CodeChange, here: Checkout | None, before: Snapshot, after: Snapshot) -> str:
    """The unified diff of a checkout's two states, made in the one that is `here`; where that lacks a commit, what was recorded of each.

    No other folder is entered, whatever a manifest says: what git does in one is up to its owner.
    """
    records = [record or {} for record in (change.before, change.after)]
    runs = [Path(snapshot.folder.label) for snapshot in (before, after)]
    diffs = [read_diff(run, str(record.get("diff") or "")) for run, record in zip(runs, records)]
    commits = [str(record.get("commit") or "") for record in records]
    if here is not None and None not in (change.before, change.after) and not any(record.get("diff_cut") for record in records):
        told = code_between(here.folder, (commits[0], diffs[0]), (commits[1], diffs[1]))
        if told is not None:
            return told
    recorded = [f"changes since commit {commit or '–'}:\n{diff.decode(errors='replace')}" for commit, diff in zip(commits, diffs)]
    return f"no checkout with both commits is at hand; what was recorded before, {recorded[0]}\nand after, {recorded[1]}"
