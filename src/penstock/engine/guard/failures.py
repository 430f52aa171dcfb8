"""What a rank leaves behind when it fails, and what its launcher makes of it.

A rank that fails writes one line to the folder it works for: `failure-rank-N.txt` for a user's mistake, `fault-rank-N.txt` for anything else,
with the time. When one rank fails the others fail too, within a moment, because their exchanges with it break; the launcher names the one that
began: a rank killed by a signal, else the earliest fault. A failing rank leaves at once, without the clean-up of its process
group, which would wait for ranks that no longer answer.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from penstock.config import EchoedError, RankFailed, UserError


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Ask Linux to send this rank a signal when its launcher dies, so that none trains on unseen (elsewhere: nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, by)  # 1: PR_SET_PDEATHSIG


def run_reporting(folder: Path, work: Callable[[], None]) -> int:
    """Do a rank's `work`; return 0, or 2 after a user's mistake. After any other failure the process ends with exit code 1."""
    try:
        work()
    except UserError as error:
        told = "" if isinstance(error, EchoedError) else str(error)
        (folder / f"failure-rank-{_rank()}.txt").write_text(told, encoding="utf-8")
        return 2
    except Exception as error:
        now = time.time()
        traceback.print_exc()
        first = str(error).strip().splitlines() or [""]
        (folder / f"fault-rank-{_rank()}.txt").write_text(f"{now:.6f} {type(error).__name__}: {first[0][:300]}", encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return 0


def _rank() -> str:
    """This process's rank now: one that is watched over may have had others before."""
    return os.environ.get("RANK", "0")


def forget_failures(folder: Path) -> None:
    """Remove what ranks of an earlier start left."""
    for pattern in ("failure-rank-*.txt", "fault-rank-*.txt"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def said_by(folder: Path, rank: int, exit_code: int) -> str:
    """Why a rank that ended with `exit_code` did, in words; what it left in the folder about it is removed."""
    file = folder / f"fault-rank-{rank}.txt"
    told = file.read_text(encoding="utf-8") if file.exists() else ""
    file.unlink(missing_ok=True)
    if exit_code < 0:
        return f"rank {rank} was killed by {signal.Signals(-exit_code).name}"
    return f"rank {rank} failed with {told.split(' ', 1)[1]}" if told else f"rank {rank} failed with exit code {exit_code}"


def cause(folder: Path, exit_codes: Mapping[int, int], first: int, mend: str) -> Exception:
    """The error to raise for ranks that ended with `exit_codes`, of which the launcher noticed `first` first; the folder is tidied."""
    complaints, faults = _read(folder, "failure"), _read(folder, "fault")
    forget_failures(folder)
    if any(complaints.values()):
        return UserError(_together(complaints))
    killed = [rank for rank, code in exit_codes.items() if code < 0 and code != -signal.SIGTERM]  # SIGTERM is the launcher's own
    if killed:
        return RankFailed(f"rank {killed[0]} was killed by {signal.Signals(-exit_codes[killed[0]]).name}; {mend}", killed[0])
    if faults:
        rank = min(faults, key=lambda r: float(faults[r].split(" ", 1)[0]))
        return RankFailed(f"rank {rank} failed with {faults[rank].split(' ', 1)[1]} (its traceback is above); {mend}", rank)
    return RankFailed(f"rank {first} failed with exit code {exit_codes[first]} (its traceback is above); {mend}", first)


def _read(folder: Path, kind: str) -> dict[int, str]:
    files = folder.glob(f"{kind}-rank-*.txt")
    return dict(sorted((int(file.stem.rpartition("-")[2]), file.read_text(encoding="utf-8")) for file in files))


def _together(complaints: dict[int, str]) -> str:
    """Complaints of several ranks: what all say is said once, what some say with their names; who has nothing to add agrees."""
    messages: dict[str, list[str]] = {}
    for rank, text in complaints.items():
        if text:
            messages.setdefault(text, []).append(str(rank))
    everyone = len(messages) == 1 and len(complaints) > 1
    return "\n".join(text if everyone else f"rank {', '.join(ranks)}: {text}" for text, ranks in messages.items())
