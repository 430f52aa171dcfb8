"""Benchmarks: each prints figures as ratios against the plain or the peer's way, interleaved in one process run."""
