"""What the links of an emulated cluster can do, and the words in which `tc` is told.

Each node has one link to a switch. A token bucket (`tbf`, a bucket that fills at the rate and lets a packet go when it holds its bytes) sits at the
link's two ends, so that a node sends, and receives, at most `bits_per_s`. In any time t the link passes at most rate × t + burst.

- burst: a sender hands the kernel packets of up to 64 KiB, which are cut into frames only at a real card; with their headers they count for some 67
  KiB. A smaller bucket would have each cut in software. A larger one would let short messages pass at once: it is 72 KiB, or what the rate brings in
  1 ms where that is more, since timers are late by that order on a busy host.
- queue: what waits when more arrives than passes, before packets are dropped: 50 ms of the rate, as switches of such rates have, at least four of the
  largest packets, and in addition what a link with latency has under way.

Latency and loss come from `netem`, on the way out of a node: a packet from one node to another is late by `latency_s`, or lost with probability
`loss`, once; an answer takes another latency. Frame headers count (bits on the wire), so a stream of full frames carries 95 % of the rate in data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.config import UserError

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
#: tc's units of rates in bit/s; those in "bps" are bytes. Letters' case does not count.
RATES = {f"{prefix}{unit}": float(factor * bits) for prefix, factor in _PREFIXES.items() for unit, bits in (("bit", 1), ("bps", 8))} | {"": 1.0}
#: tc's units of times in seconds; a number alone is in µs.
TIMES = {"s": 1.0, "sec": 1.0, "secs": 1.0, "ms": 1e-3, "msec": 1e-3, "msecs": 1e-3, "us": 1e-6, "usec": 1e-6, "usecs": 1e-6, "": 1e-6}
#: The slowest and fastest rates accepted, bit/s.
SLOWEST, FASTEST = 10_000, 1_000_000_000_000
LARGEST_PACKET = 72 << 10
QUEUE_S = 0.05


@dataclass(frozen=True)
class Link:
    """Bandwidth of a node's link in each direction (bit/s), latency of a packet between two nodes (s), and the share of packets lost."""

    bits_per_s: int
    latency_s: float = 0.0
    loss: float = 0.0

    @property
    def needs_netem(self) -> bool:
        """Whether the bandwidth limit alone does not make this link."""
        return self.latency_s > 0 or self.loss > 0

    @property
    def burst(self) -> int:
        """Bytes that may pass at once."""
        return max(LARGEST_PACKET, int(self.bits_per_s / 8 * 1e-3))

    @property
    def queue(self) -> int:
        """Bytes that may wait (tbf's `limit`, which includes the bucket)."""
        return self.burst + max(4 * LARGEST_PACKET, int(self.bits_per_s / 8 * (QUEUE_S + 2 * self.latency_s)))

    def bandwidth_limit(self) -> list[str]:
        """tc's words for the token bucket."""
        return ["tbf", "rate", f"{self.bits_per_s}bit", "burst", f"{self.burst}b", "limit", f"{self.queue}b"]

    def delay_and_loss(self) -> list[str]:
        """tc's words for latency and loss; `limit` is in packets and holds whatever is under way."""
        return ["netem", "limit", "1000000", "delay", f"{self.latency_s * 1e6:.0f}us", "loss", f"{self.loss * 100:.6f}%"]


def parse_link(bandwidth: str, latency: str | None = None, loss: str | None = None) -> Link:
    """A link from words in tc's notation ('200mbit', '1ms', '0.1%'); raises `UserError` for what tc would not understand."""
    rate = _number(bandwidth, RATES)
    if rate is None or not SLOWEST <= rate <= FASTEST:
        raise UserError(f"--bandwidth {bandwidth!r} is no rate of tc's from 10kbit to 1tbit; write it like 200mbit, 2.5gbit or 25mbps (bytes)")
    seconds = _number(latency or "0", TIMES)
    if seconds is None or seconds > 10:
        raise UserError(f"--latency {latency!r} is no time of tc's up to 10s; write it like 1ms or 250us")
    share = _number(loss or "0", {"%": 0.01, "": 0.01})
    if share is None or share >= 1:
        raise UserError(f"--loss {loss!r} is no share of packets below 100%; write it like 0.1%")
    return Link(int(rate), seconds, share)


def rate_text(bits_per_s: float) -> str:
    """1.95e8 → 195 Mbit/s."""
    for unit, factor in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits_per_s >= 0.9995 * factor:
            return f"{bits_per_s / factor:.4g} {unit}"
    return f"{bits_per_s:.4g} bit/s"


def _number(text: str, units: dict[str, float]) -> float | None:
    parts = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z%]*)", text.strip().lower())
    return float(parts[1]) * units[parts[2]] if parts and parts[2] in units else None
