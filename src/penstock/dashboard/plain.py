"""Answers in JSON: numbers that are not finite as words, and refusals as one sentence.

JSON has no NaN and no infinity, and a browser refuses what Python would write for them; they become "nan", "inf" and "-inf". Cost: a walk over the
answer, some 0.2 µs a value. When not to use it: for courses of metrics, which are sent as numbers of their own (`courses.py`).
"""

from __future__ import annotations

import json
from typing import Any

from penstock.store.canonical import plain


class Refusal(Exception):
    """A request that is not answered: an HTTP status from 400 on, and why in one sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


def to_json(value: Any) -> str:
    """A value as JSON that every browser reads."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
