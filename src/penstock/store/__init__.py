"""Floor 4: runs as folders, and the snapshots in them."""

from penstock.store.chunks import ChunkEntry, Damaged, chunk_digest
from penstock.store.folder import Folder, LocalFolder, open_folder
from penstock.store.history import Event, History, append_event, history_head, read_history
from penstock.store.locks import current_writer, in_use, writer_lock
from penstock.store.manifest import Manifest, TensorEntry, read_manifest, write_manifest
from penstock.store.packs import PackWriter, new_pack_name, read_chunk, read_pack
from penstock.store.retention import Collected, Policy, collect, pin, read_pins
from penstock.store.runs import Run, create_run, find_run, list_runs, new_run_folder, save_config
from penstock.store.snapshots import Snapshot, list_snapshots, load_snapshot, read_numbers, save_snapshot, stored_names

__all__ = [
    "ChunkEntry", "Collected", "Damaged", "Event", "Folder", "History", "LocalFolder", "Manifest", "PackWriter", "Policy", "Run",
    "Snapshot", "TensorEntry", "append_event", "chunk_digest", "collect", "create_run", "current_writer", "find_run", "history_head",
    "in_use", "list_runs", "list_snapshots", "load_snapshot", "new_pack_name", "new_run_folder", "open_folder", "pin", "read_chunk",
    "read_history", "read_manifest", "read_numbers", "read_pack", "read_pins", "save_config", "save_snapshot", "stored_names",
    "write_manifest", "writer_lock",
]
