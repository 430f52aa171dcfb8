"""Floor 4: runs as folders, and the snapshots in them."""

from penstock.store.cell_writer import Increments
from penstock.store.chunks import ChunkEntry, Damaged, chunk_digest
from penstock.store.folder import Folder, LocalFolder, open_folder
from penstock.store.loading import load_partial, load_snapshot, read_numbers
from penstock.store.manifest import Manifest, Snapshot, TensorEntry, list_snapshots, read_manifest, write_manifest
from penstock.store.packs import PackWriter, new_pack_name, read_chunk, read_pack
from penstock.store.runs import Run, create_run, find_run, list_runs, new_run_folder, save_config
from penstock.store.saver import Outcome, Saver, published, save_snapshot

__all__ = [
    "ChunkEntry", "Damaged", "Folder", "Increments", "LocalFolder", "Manifest", "Outcome", "PackWriter", "Run", "Saver", "Snapshot",
    "TensorEntry", "chunk_digest", "create_run", "find_run", "list_runs", "list_snapshots", "load_partial", "load_snapshot",
    "new_pack_name", "new_run_folder", "open_folder", "published", "read_chunk", "read_manifest", "read_numbers", "read_pack",
    "save_config", "save_snapshot", "write_manifest",
]
