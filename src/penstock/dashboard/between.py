"""What differs between two snapshots of a run, as the page shows it: settings, code, environment, data, layout, and tensors by their digests.

    between(run, "3f2a…", "9c01…")       ids, or their first digits from 4 on

All comes from the two manifests (`store/story/diff.py`), so neither the state nor torch is read. How far tensors are apart only the state tells:
`penstock runs diff … --weights`. Cost: reading two manifests, some 10 ms a megabyte; larger ones than `MOST_BYTES` are for the terminal.
"""

from __future__ import annotations

from typing import Any

from penstock.dashboard.plain import Refusal
from penstock.store.places.folder import LocalFolder
from penstock.store.runs import Run
from penstock.store.snapshots.manifest import Manifest, list_snapshots, read_manifest
from penstock.store.story.diff import compare

#: Largest manifest that is read for a page, changed values of a part, and names of tensors of a kind, at most.
MOST_BYTES, MOST_VALUES, MOST_NAMES = 64 << 20, 500, 200


def between(run: Run, before: str, after: str) -> dict[str, Any]:
    """What differs from one snapshot to another; raises `Refusal` where one is not there, `Damaged` where one cannot be read."""
    diff = compare(_manifest(run, before), _manifest(run, after))
    told = diff.as_dict()
    parts = [
        {"part": part, "count": len(changes), "values": [{"key": one.name, "values": [one.before, one.after]} for one in changes[:MOST_VALUES]]}
        for part, changes in diff.parts.items()
        if changes
    ]
    code = [{"name": one.checkout, "same": one.same, "before": one.before, "after": one.after} for one in diff.code]
    tensors = told["tensors"] | {"reshaped": [change.name for change in diff.tensors.reshaped]}
    kinds = {kind: {"count": len(names), "names": names[:MOST_NAMES] if kind != "equal" else []} for kind, names in tensors.items()}
    return {"parts": parts, "code": code, "tensors": kinds, "same_state": diff.same_state}


def _manifest(run: Run, id: str) -> Manifest:
    found = [one for one in list_snapshots(LocalFolder(run.path)) if one.id.startswith(id[:12])]
    if len(found) != 1:
        raise Refusal(404, f"{run.name} has {'no snapshot' if not found else 'several snapshots'} {id[:12]}; `penstock runs log` tells which it has")
    if found[0].folder.size(found[0].file) > MOST_BYTES:
        raise Refusal(413, f"snapshot {id[:12]} is told of in more than {MOST_BYTES >> 20} MB; compare it on the terminal: penstock runs diff")
    manifest = read_manifest(found[0])
    if not manifest.id.startswith(id):
        raise Refusal(404, f"{run.name} has no snapshot {id}")
    return manifest
