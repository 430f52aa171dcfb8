"""Floor 4: runs as folders, and the snapshots in them.

`cells` are what tensors are stored as, `snapshots` how they come and go, `story` what happened to a run, `places` where it lies.
What reads or writes tensors is imported when it is first asked for, so that whoever only looks at runs (listing, the dashboard) needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from penstock.store.cells.chunks import ChunkEntry, Damaged, chunk_digest
from penstock.store.cells.packs import PackWriter, new_pack_name, read_chunk, read_pack
from penstock.store.places.folder import Folder, LocalFolder, open_folder
from penstock.store.places.locks import current_writer, in_use, writer_lock
from penstock.store.runs import Run, check_format, create_run, find_run, list_runs, new_run_folder, run_state, save_config
from penstock.store.snapshots.index import Indexed, Row, indexed, row_of
from penstock.store.snapshots.manifest import Manifest, Snapshot, TensorEntry, list_snapshots, read_manifest, write_manifest
from penstock.store.snapshots.naming import find_snapshot, newest_snapshot
from penstock.store.snapshots.retention import Collected, Policy, collect, pin, policy_of, read_pins
from penstock.store.story.history import Event, History, append_event, history_head, read_history
from penstock.store.story.timeline import Entry, Timeline, Told, run_timeline, tell_snapshot

if TYPE_CHECKING:
    from penstock.store.cells.cell_writer import Increments
    from penstock.store.places.sending import Sent, transfer
    from penstock.store.snapshots.loading import agreed_manifest, load_partial, load_snapshot, read_numbers
    from penstock.store.snapshots.saver import Outcome, Saver, published, save_snapshot
    from penstock.store.story.verify import Damage, Verified, verify_run

#: Names that need torch, by the module that has them.
_LATER = {
    "cells.cell_writer": ("Increments",),
    "snapshots.loading": ("agreed_manifest", "load_partial", "load_snapshot", "read_numbers"),
    "snapshots.saver": ("Outcome", "Saver", "published", "save_snapshot"),
    "places.sending": ("Sent", "transfer"),
    "story.verify": ("Damage", "Verified", "verify_run"),
}

__all__ = [
    "ChunkEntry", "Collected", "Damage", "Damaged", "Entry", "Event", "Folder", "History", "Increments", "Indexed", "LocalFolder",
    "Manifest", "Outcome", "PackWriter", "Policy", "Row", "Run", "Saver", "Sent", "Snapshot", "TensorEntry", "Timeline", "Told", "Verified",
    "agreed_manifest", "append_event", "check_format", "chunk_digest", "collect", "create_run", "current_writer", "find_run",
    "find_snapshot", "history_head", "in_use", "indexed", "list_runs", "list_snapshots", "load_partial", "load_snapshot", "new_pack_name",
    "new_run_folder", "newest_snapshot", "open_folder", "pin", "policy_of", "published", "read_chunk", "read_history", "read_manifest",
    "read_numbers", "read_pack", "read_pins", "row_of", "run_state", "run_timeline", "save_config", "save_snapshot", "tell_snapshot",
    "transfer", "verify_run", "write_manifest", "writer_lock",
]


def __getattr__(name: str) -> object:
    module = next((module for module, names in _LATER.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = found
    return found
