"""The one exception type for everything a user can mend.

A `UserError` carries one sentence that says what is wrong, where, and how to mend it. The command line
prints it on stderr without a traceback and exits with code 2; nothing else in the house catches it.
Anything that is not a `UserError` is a fault of ours and exits with code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a broken environment, with the mend in the message."""


class ConfigError(UserError):
    """A setting that is unknown, out of range, or impossible beside another one."""


class SharedError(UserError):
    """A `UserError` that every rank raises at the same point, so that they may still do collective work before they end."""


class EchoedError(UserError):
    """A `UserError` of a rank that only ends because another one met a mistake, which that one tells."""


class RankFailed(Exception):
    """A rank ended in a way that is not the user's mistake (killed, crashed); the message names it. Exit code 1."""

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the closest valid name, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
