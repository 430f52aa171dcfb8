"""Floor 4: runs as folders, and the snapshots in them."""

from penstock.store.code import keep_diff, read_diff
from penstock.store.runs import Run, create_run, find_run, list_runs, new_run_folder, save_config
from penstock.store.snapshots import Snapshot, list_snapshots, load_snapshot, read_numbers, save_snapshot, stored_names

__all__ = [
    "Run", "Snapshot", "create_run", "find_run", "keep_diff", "list_runs", "list_snapshots", "load_snapshot", "new_run_folder", "read_diff",
    "read_numbers", "stored_names", "save_config", "save_snapshot",
]
