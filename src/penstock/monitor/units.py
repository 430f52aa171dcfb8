"""Numbers as people read them: 12.3k, 850 MiB, 1m 20s, 0.481 s."""

from __future__ import annotations

import math


def count(value: float) -> str:
    """12 → 12, 12345 → 12.3k, 2.5e9 → 2.5G."""
    return _scaled(value, 1000.0, ("", "k", "M", "G", "T")) if math.isfinite(value) else str(value)


def size(n_bytes: float) -> str:
    """Bytes with a binary unit."""
    return _scaled(n_bytes, 1024.0, (" B", " KiB", " MiB", " GiB", " TiB")) if math.isfinite(n_bytes) else str(n_bytes)


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


def in_unit(value: float, unit: str) -> str:
    """A metric's value in its unit (of the catalogue); what is no more than rounding of a mean that has sunk to nothing is 0."""
    if unit == "bytes":
        return size(value)
    return f"{0.0 if abs(value) < 1e-30 else value:.4g}" + (f" {unit}" if unit not in ("", "1") else "")


def money(amount: float, currency: str) -> str:
    """12.3456 → 12.35 USD; less than a hundredth with two significant digits."""
    return f"{amount:,.2f} {currency}" if abs(amount) >= 0.01 or amount == 0 else f"{amount:.2g} {currency}"


def _scaled(value: float, base: float, suffixes: tuple[str, ...]) -> str:
    """Three significant digits and the suffix that leaves fewer than `base` units after rounding."""
    n = 0
    while abs(value) >= base - 0.5 and n < len(suffixes) - 1:
        value, n = value / base, n + 1
    return f"{value:.0f}{suffixes[n]}" if abs(value) >= 999.5 else f"{value:.3g}{suffixes[n]}"
