"""What a monitor's policy asks of a running run, between two steps (`obey.py`): save now, or stop.

A lower rate is a change of settings like any other (`change.py`). Cost: that of a snapshot. When not to use it: for a change by hand (`penstock
change`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.engine.requests.commands import Answer, Command

if TYPE_CHECKING:
    from penstock.engine.build import Parts


def snapshot_now(parts: Parts, command: Command) -> Answer:
    """Save the state of this step; all ranks must call it."""
    parts.saving.save(parts)
    return _told(parts, command, f"saves the state of step {parts.progress.step}")


def stop_soon(parts: Parts, command: Command) -> Answer:
    """Stop after the next step, and save; all ranks must call it."""
    parts.stop.requested = True
    return _told(parts, command, f"stops after step {parts.progress.step + 1}, and saves")


def _told(parts: Parts, command: Command, text: str) -> Answer:
    """Write down what is done, and why."""
    why = command.arguments.get("alert", "")
    parts.saving.tell_history("note", f"{text}{f', for alert {why}' if why else ''}", parts.progress.step, command=command.kind, who=command.who)
    return Answer("done", text, told=True)
