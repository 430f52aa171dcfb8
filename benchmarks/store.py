"""The run store whole: bytes of increments (`store_bytes`), ten thousand snapshots (`store_scale`), saving beside training (`store_training`).

Each of the three can be run by its own name too, and its docstring says what its figures are and what they are held against. About 45 minutes.
"""

from __future__ import annotations

from benchmarks import store_bytes, store_scale, store_training


def run() -> dict[str, float | str]:
    """The figures of all three."""
    return store_bytes.run() | store_scale.run() | store_training.run()
