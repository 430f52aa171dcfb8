"""Floor 4: where people are told of alerts: the terminal, a webhook, letters, a command of their own."""

from penstock.monitor.sinks.build import Sinks, build_sinks
from penstock.monitor.sinks.message import Message
from penstock.monitor.sinks.worker import Worker

__all__ = ["Message", "Sinks", "Worker", "build_sinks"]
