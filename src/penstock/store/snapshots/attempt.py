"""Writing a snapshot's packs together: every rank its own, all telling each other how far they are, those that could not trying again.

Ranks write for at most `TELL_S` seconds between two rounds of telling, so however slow one's disk is, the others' waits stay far from their
deadline; a rank that has died is noticed at it. Who could not write because of the disk tries again after a pause, twice. Anything
else that goes wrong is a fault of ours, of which all ranks are told, so that none waits for the one that has it.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from penstock.config import UserError
from penstock.store.cells.cell_writer import CellWriter
from penstock.store.cells.chunks import Damaged
from penstock.store.cells.packs import pack_file
from penstock.store.places.folder import Folder
from penstock.store.snapshots.together import Ranks

#: Seconds before the second and the third attempt.
PAUSES = (1.0, 4.0)
#: Longest time, seconds, that a rank writes without telling the others how far it is.
TELL_S = 20.0


class Attempt:
    """One rank's pack: being written, done, refused by the disk, or at fault."""

    def __init__(self, writer: CellWriter) -> None:
        self.writer = writer
        self.state, self.why = "writing", ""

    def go_on(self, seconds: float, given_up: threading.Event) -> None:
        """Write for about so long, a cell at least, or until it is given up."""
        end = time.monotonic() + seconds
        try:
            while self.state == "writing":
                if next(self.writer, "through") == "through":
                    self.state = "done"
                if time.monotonic() > end or given_up.is_set():
                    break
        except (OSError, UserError) as error:
            self.state, self.why = "refused", str(error)
        except Exception as error:  # the other ranks must not wait for this one
            traceback.print_exc()
            self.state, self.why = "fault", f"{type(error).__name__}: {error}"


def write_together(ranks: Ranks, new_writer: Callable[[], CellWriter]) -> CellWriter | str:
    """Write this rank's cells while the others write theirs; all ranks must call it. Returns its writer, or why some rank could not.

    Raises RuntimeError on all ranks when one is at fault.
    """
    attempt = Attempt(new_writer())
    for pause in (*PAUSES, None):
        told = _write(ranks, attempt)
        at_fault = [f"rank {rank}: {why}" for rank, (state, why) in enumerate(told) if state == "fault"]
        if at_fault:
            raise RuntimeError(f"a snapshot could not be written: {'; '.join(at_fault)}")
        refused = {rank: why for rank, (state, why) in enumerate(told) if state == "refused"}
        if not refused:
            return attempt.writer
        if pause is not None:
            time.sleep(pause)
            attempt = Attempt(new_writer()) if attempt.state == "refused" else attempt
    return _named(refused, ranks.size)


def _write(ranks: Ranks, attempt: Attempt) -> list[list[str]]:
    """Let every rank come to an end with its attempt; return how, and why."""
    while True:
        attempt.go_on(TELL_S, ranks.given_up)
        told = ranks.tell([attempt.state, attempt.why])
        if all(state != "writing" for state, _ in told):
            return told


def try_again(action: Callable[[], object]) -> str:
    """Do something that the disk may refuse, thrice at most; return why it did not work, empty if it did. `Damaged` is raised at once."""
    why = ""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            action()
        except Damaged:
            raise
        except (OSError, UserError) as error:
            why = str(error)
        else:
            return ""
    return why


def remove_pack(folder: Folder, pack: str) -> None:
    """Remove what was written for a snapshot that was given up, if the disk lets us; the next collection of unused packs does otherwise."""
    with suppress(OSError, UserError):
        folder.remove(pack_file(pack))


def _named(refused: dict[int, str], size: int) -> str:
    """Who said what, each once."""
    said: dict[str, list[str]] = {}
    for rank, why in refused.items():
        said.setdefault(why, []).append(str(rank))
    return "; ".join(why if size == 1 else f"rank {', '.join(ranks)}: {why}" for why, ranks in said.items())
