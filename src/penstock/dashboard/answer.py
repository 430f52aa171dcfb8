"""The server's answers in JSON, and its one form for all that is refused.

Cost: that of `plain.py`. When not to use it: without a server; what a frozen page holds is made without one (`frozen.py`).
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from penstock.dashboard.plain import to_json


class Answer(JSONResponse):
    """An answer in JSON."""

    def render(self, content: Any) -> bytes:
        """Its bytes; a lone half of a surrogate pair in a name becomes a question mark."""
        return to_json(content).encode("utf-8", "replace")


def refused(status: int, why: str, headers: dict[str, str] | None = None) -> Answer:
    """The answer to a request that is refused."""
    return Answer({"error": why}, status, headers)
