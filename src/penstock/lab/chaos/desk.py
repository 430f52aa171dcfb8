"""The folder through which the lab and the ranks of a run tell each other: what is to be done, who is there, and what was done.

    plan.json               the faults of this run                                  (the lab)
    supervisor              process id of the command that runs                     (the lab)
    ranks/<pid>.json        the rank of a process, and since which generation       (ranks)
    marks/<n>.json          fault n has struck, when, and what the history held     (ranks)

A mark is made before its fault strikes, by linking a whole file to a name that nobody has taken: so each strikes once, whoever dies meanwhile.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from penstock.lab.chaos.plan import Fault
from penstock.store import history_head

#: Where ranks find the folder.
FOLDER = "PENSTOCK_FAULTS"


class Desk:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lay_out(self, run: Path, faults: tuple[Fault, ...]) -> None:
        """Make the folder, with what is to be done in `run`."""
        for name in ("ranks", "marks"):
            (self.folder / name).mkdir(parents=True)
        self._write("plan.json", {"run": str(run), "faults": [fault.as_dict() for fault in faults]})

    def plan(self) -> tuple[Path, list[Fault]]:
        """The run, and its faults."""
        told = json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))
        return Path(told["run"]), [Fault(**fault) for fault in told["faults"]]

    def set_supervisor(self, pid: int) -> None:
        """Say which process keeps the ranks."""
        self._write("supervisor", pid)

    def supervisor(self) -> int:
        """The process that keeps the ranks."""
        return int((self.folder / "supervisor").read_text(encoding="utf-8"))

    def register(self, rank: int, generation: int) -> None:
        """Say that this process is a rank of a generation."""
        pid = os.getpid()
        self._write(f"ranks/{pid}.json", {"rank": rank, "generation": generation, "born": psutil.Process(pid).create_time()})

    def ranks(self, generation: int | None = None) -> dict[int, int]:
        """Living processes (of a generation that has taken a step), by id their rank."""
        found = {}
        for file in (self.folder / "ranks").glob("*.json"):
            told, pid = json.loads(file.read_text(encoding="utf-8")), int(file.stem)
            with suppress(psutil.NoSuchProcess):
                if generation in (None, told["generation"]) and psutil.Process(pid).create_time() == told["born"]:
                    found[pid] = told["rank"]
        return found

    def mark(self, name: str, run: Path, **told: Any) -> bool:
        """Say that a fault strikes now; False if it has been said before."""
        partial = self._write(f".{name}-{os.getpid()}", told | {"seq": history_head(run)["seq"]})
        try:
            os.link(partial, self.folder / "marks" / f"{name}.json")
        except FileExistsError:
            return False
        finally:
            partial.unlink()
        return True

    def marks(self) -> dict[str, dict[str, Any]]:
        """What has struck, by name."""
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (self.folder / "marks").glob("*.json")}

    def has_mark(self, name: str) -> dict[str, Any] | None:
        """What was said when a fault struck; None if it has not."""
        with suppress(FileNotFoundError):
            told: dict[str, Any] = json.loads((self.folder / "marks" / f"{name}.json").read_text(encoding="utf-8"))
            return told
        return None

    def _write(self, name: str, content: Any) -> Path:
        """Write a file, which appears whole."""
        final = self.folder / name
        partial = final.with_name(f"{final.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(content), encoding="utf-8")
        os.replace(partial, final)
        return final
