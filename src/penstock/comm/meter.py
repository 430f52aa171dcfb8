"""The byte meter: how much each named exchange handed to the network.

Bytes are the payload handed to the collective on this rank, before the algorithm's own factor (a ring
all-reduce of n bytes over p ranks moves 2 n (p - 1) / p a rank; Patarasuk and Yuan, 2009).
"""

from __future__ import annotations

from collections import defaultdict


class ByteMeter:
    """Bytes and calls by name of exchange; `take` reads and resets."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = defaultdict(int)
        self._calls: dict[str, int] = defaultdict(int)

    def count(self, name: str, n_bytes: int) -> None:
        """Add one call of `n_bytes` payload under `name`."""
        self._bytes[name] += n_bytes
        self._calls[name] += 1

    def take(self) -> dict[str, int]:
        """Bytes and calls since the last take, as `{name}_bytes` and `{name}_calls`."""
        row = {f"{name}_bytes": n for name, n in self._bytes.items()} | {f"{name}_calls": n for name, n in self._calls.items()}
        self._bytes.clear()
        self._calls.clear()
        return row
