"""Floor 4: what people are told of a run's faults: one alert a fault, with its cause and what to do, kept in the run's folder."""

from penstock.monitor.alerts.alert import Alert, Level, State, as_text
from penstock.monitor.alerts.book import BOOK, Book, read_alerts
from penstock.monitor.alerts.desk import Desk
from penstock.monitor.alerts.events import RunEvents
from penstock.monitor.alerts.kinds import KINDS, AlertKind, kind_of
from penstock.monitor.alerts.policy import Policy, parse_policy

__all__ = [
    "BOOK", "KINDS", "Alert", "AlertKind", "Book", "Desk", "Level", "Policy", "RunEvents", "State", "as_text", "kind_of", "parse_policy",
    "read_alerts",
]  # fmt: skip
