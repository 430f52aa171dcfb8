"""The kinds of faults that the lab plants, each with where it strikes and what the run's history must tell of it afterwards.

Kinds are those that long runs met: ranks that are killed or fail, hang, slow down or run out of memory, connections that break, disks that fill or
lie, and whole jobs that are stopped (Llama 3's report, arXiv:2407.21783, section 3.3.4, counts the causes of 419 interruptions in 54 days).
"""

from __future__ import annotations

from dataclasses import dataclass

#: Phases of a rank's heart (`engine/guard/heart.py`) that every step has.
STEP = ("data", "forward_backward", "exchange", "optimizer")


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what is done (`acts.py`), in one of which phases, and what follows from it.

    `every`: the setting that says after which steps the phase comes ("": every step). `tells`: the kind of event that the history must have. `loses`:
    ranks that are gone afterwards, for good where nobody replaces them. `snapshots`: so many must be on the disk before. `delay_s`: it strikes up to
    so many seconds after the phase has begun, if not at once.
    """

    text: str
    act: str
    phases: tuple[str, ...] = STEP
    every: str = ""
    tells: str = "recovery"
    loses: int = 1
    snapshots: int = 0
    delay_s: float = 0.0


KINDS: dict[str, Kind] = {
    "kill-forward": Kind("SIGKILL in the forward and backward passes", "kill", ("forward_backward",), delay_s=0.02),
    "kill-collective": Kind("SIGKILL in a collective, while the others are in it", "kill", ("exchange",), delay_s=0.01),
    "kill-optimizer": Kind("SIGKILL while the optimizer updates", "kill", ("optimizer",), delay_s=0.005),
    "kill-snapshot": Kind("SIGKILL while a snapshot is copied or written", "kill", ("snapshot",), "snapshot.every", delay_s=0.2),
    "kill-evaluation": Kind("SIGKILL during evaluation", "kill", ("evaluation",), "eval.every", delay_s=0.02),
    "kill-lead": Kind("SIGKILL of rank 0", "kill", delay_s=0.01),
    "kill-two": Kind("SIGKILL of two ranks at once", "kill-both", delay_s=0.01, loses=2),
    "kill-in-recovery": Kind("SIGKILL of a rank while another's death is recovered from", "kill", loses=2),
    "kill-all": Kind("SIGKILL of all ranks at once", "kill-all", loses=0),
    "hang-stopped": Kind("SIGSTOP: a rank that hangs in the system", "stop"),
    "hang-stuck": Kind("a rank whose main thread waits for ever, outside any exchange", "stick"),
    "slow": Kind("a rank that stalls in every phase of some steps", "slow", tells="", loses=0),
    "error": Kind("an exception in one rank", "error"),
    "out-of-memory": Kind("a rank's allocation that the system refuses", "memory"),
    "link": Kind("connections to other ranks are closed", "link", loses=0),
    "disk-full": Kind("the disk is full for one rank while a snapshot is written", "disk", ("snapshot",), "snapshot.every", "alert", 0),
    "damaged-snapshot": Kind("the newest snapshot is damaged, then all ranks are killed", "damage", ("data",), loses=0, snapshots=2),
    "stop-resume": Kind("SIGTERM of the whole run, then `penstock resume`", "terminate", tells="resume", loses=0, snapshots=1),
    "supervisor": Kind("SIGKILL of the supervisor, then `penstock resume`", "behead", tells="resume", loses=0, snapshots=1),
}  # fmt: skip
