"""Snapshots beside training, and reading them back: Penstock's store and torch's asynchronous save in the same run, in turns.

Two ranks (gloo, one thread each) train 29.5 M parameters with AdamW in float32 (a state of 354 MB), 2,048 tokens a step, on random tokens. A window
is a save and 20 steps, with the rest of the save if it is not through by then; windows without a save, with Penstock's and with torch's take
turns, PENSTOCK_STORE_TURNS of each (3: a quarter of an hour on two cores).

    penstock_slowdown, torch_slowdown    time of a window over that of one without a save in the same turn, less one: median (aim 0.02); _low, _high:
                                         quartiles
    penstock_stall_s, _stall_over_copy   the longest call that begins a save, and over the median time of a plain copy of the whole state (aim 1.5);
                                         with torch's
    restore_full_over_disk               bytes of the state a second, loaded into one process from the first snapshot with nothing cached, over the
                                         bytes a second at which the packs are read as they are (aim 0.5); _low, _high
    restore_increments_over_disk         the same from the last snapshot, which is one increment deeper for each turn
    restore_torch_over_disk              the same with torch's own
    state_mb, step_s, copy_s, disk_mb_s  what they are held against
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from penstock.engine import start_ranks


def run() -> dict[str, float | str]:
    """What two ranks of this host find."""
    with tempfile.TemporaryDirectory(prefix="penstock-store-") as folder:
        start_ranks("benchmarks.store_training_ranks", Path(folder), 2, 0, "look at its traceback above")
        found: dict[str, float | str] = json.loads((Path(folder) / "figures.json").read_text(encoding="utf-8"))
        return found
