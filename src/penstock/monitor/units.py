"""Numbers as people read them: 12.3k, 850 MiB, 1m 20s."""

from __future__ import annotations

import math


def count(value: float) -> str:
    """12 → 12, 12345 → 12.3k, 2.5e9 → 2.50G."""
    if not math.isfinite(value):
        return str(value)
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def size(n_bytes: float) -> str:
    """Bytes with a binary unit."""
    for limit, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.3g} {suffix}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as the two largest of days, hours, minutes and seconds."""
    if not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s" if seconds >= 9.95 else f"{seconds:.1f}s"
    for big, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= big:
            return f"{whole // big}{names[0]} {whole % big // small:02d}{names[1]}"
    return f"{whole}s"
