"""How a process that has used torch ends: at once, when all that was to be done is done.

Taking the interpreter apart is of no use to a process that ends, takes half a second with torch in it, and is not safe: a thread of torch's, or a
daemon of Python's that is inside torch, and that asks for the interpreter's lock after the end has begun, ends the process with SIGABRT ("terminate
called without an active exception"), whatever its work had come to.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process with `code`, after threads that are no daemons have ended, what was put off till the exit is done, and all output is out."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more, or it is closed
            code = code or 120  # as the interpreter itself does
    os._exit(code)
