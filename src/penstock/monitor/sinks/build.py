"""All sinks of a run, from its settings; each works for itself, so that one that hangs holds up no other."""

from __future__ import annotations

import time
from collections.abc import Callable

from penstock.config import AlertsSection
from penstock.monitor.sinks.command import CommandSink
from penstock.monitor.sinks.console import Console
from penstock.monitor.sinks.mail import Mail
from penstock.monitor.sinks.message import Message
from penstock.monitor.sinks.webhook import Webhook
from penstock.monitor.sinks.worker import Worker


class Sinks:
    """Tells all sinks."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers

    def put(self, message: Message) -> None:
        """Have all of them told; returns at once."""
        for worker in self.workers:
            worker.put(message)

    def close(self, deadline_s: float) -> None:
        """Wait so long at most until all have been told."""
        end = time.monotonic() + deadline_s
        for worker in self.workers:
            worker.close(max(0.0, end - time.monotonic()))


def build_sinks(section: AlertsSection, say: Callable[[str], None]) -> Sinks:
    """The sinks that settings ask for; `say` is told of failures."""
    workers = [Worker("the console", Console(), say)] if section.console else []
    workers += [Worker(f"the webhook {url}", Webhook(url), say) for url in section.webhook.split()]
    workers += [Worker(f"{section.email} by mail", Mail(section.email, section.smtp), say)] if section.email else []
    workers += [Worker("the command", CommandSink(section.command), say)] if section.command else []
    return Sinks(workers)
