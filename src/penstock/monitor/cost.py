"""What a run costs: the hours of its devices, and their price where the settings name one (`cost.per_device_hour`).

    money = hours of devices × price of one for an hour        at the end: and the time that is left × devices

The hours are those of steps that count, with evaluations and snapshots: neither of starting, nor of steps that were lost and done again. The price is
that of now for all of them. Cost: reading the settings, 3 ms. When not to use it: as an invoice.
"""

from __future__ import annotations

import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.monitor.units import money

#: The metric that counts the hours.
HOURS = "cost/device_hours"


@dataclass(frozen=True)
class Cost:
    """Hours of devices so far; and in `currency` their price, what they came to, and what all will have come to at the end; None: not known."""

    device_hours: float | None = None
    per_device_hour: float | None = None
    currency: str = ""
    money: float | None = None
    money_at_end: float | None = None

    @classmethod
    def of(cls, price: float, currency: str) -> Cost:
        """Of no hours yet, at a price; 0: none is known."""
        return cls(per_device_hour=price, currency=currency) if price > 0 else cls()

    def at(self, hours: float | None, left_s: float | None, devices: int) -> Cost:
        """The cost at so many hours of devices, where `devices` have `left_s` seconds to go."""
        price = self.per_device_hour
        money = price * hours if price is not None and hours is not None else None
        end = money + price * devices * left_s / 3600 if money is not None and price is not None and left_s is not None else None
        return Cost(hours, price, self.currency, money, end)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))

    def __str__(self) -> str:
        """The money in words; empty where no price is known."""
        if self.money is None:
            return ""
        end = f", {money(self.money_at_end, self.currency)} at the end" if self.money_at_end is not None else ""
        return f"cost {money(self.money, self.currency)}{end}"


def price_of(run: Path) -> Cost:
    """The price by the settings of the run in a folder; none where they name none, or are damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        told = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))["cost"]
        return Cost.of(float(told["per_device_hour"]), str(told["currency"]))
    return Cost()
