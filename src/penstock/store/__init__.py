"""Floor 4: runs as folders, and the snapshots in them."""

from penstock.store.chunks import ChunkEntry, Damaged, chunk_digest
from penstock.store.code import keep_diff, read_diff
from penstock.store.folder import Folder, LocalFolder, open_folder
from penstock.store.manifest import Manifest, TensorEntry, read_manifest, write_manifest
from penstock.store.packs import PackWriter, new_pack_name, read_chunk, read_pack
from penstock.store.runs import Run, create_run, find_run, list_runs, new_run_folder, save_config
from penstock.store.snapshots import Snapshot, list_snapshots, load_snapshot, read_numbers, save_snapshot, stored_names

__all__ = [
    "ChunkEntry", "Damaged", "Folder", "LocalFolder", "Manifest", "PackWriter", "Run", "Snapshot", "TensorEntry", "chunk_digest", "create_run",
    "find_run", "list_runs", "list_snapshots", "load_snapshot", "new_pack_name", "new_run_folder", "open_folder", "read_chunk", "read_manifest",
    "read_numbers", "read_pack", "save_config", "save_snapshot", "stored_names", "write_manifest",
    "keep_diff", "read_diff",
]
