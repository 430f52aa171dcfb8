"""What is told of an alert: which run, what happened to the alert, and the alert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penstock.monitor.alerts import Alert, as_text


@dataclass(frozen=True)
class Message:
    """`event`: "opened", "changed" or "resolved"."""

    run: str
    event: str
    alert: Alert

    def as_dict(self) -> dict[str, Any]:
        """As JSON; `text` is a line for services that show one, such as Slack's."""
        return {"text": self.line(), "run": self.run, "event": self.event, "alert": self.alert.as_dict()}

    def line(self) -> str:
        """One line."""
        where = f" at {self.alert.where}" if self.alert.where else ""
        return f"{self.run}: {self.event} {self.alert.level} {self.alert.kind}{where} since step {self.alert.since}: {self.alert.what}"

    def block(self) -> str:
        """Some lines."""
        if self.event == "resolved":
            return f"RESOLVED {self.alert.id}: {self.alert.notes[-1] if self.alert.notes else ''}"
        return as_text(self.alert)
