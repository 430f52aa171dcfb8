"""One rank of a command whose launcher is Penstock's own: `python -m penstock.cli.rank FOLDER COMMAND…`.

As below torchrun, the environment says which rank this is. Instead of telling its failure itself, as `penstock` does, the rank leaves it in FOLDER
for the launcher, which hears all ranks and tells the one that began (`engine/guard/failures.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from penstock.cli.app import app


def main(folder: Path, arguments: list[str]) -> int:
    """Run the command; the exit code is its own."""
    from penstock.config import UserError
    from penstock.engine import die_with_parent, run_reporting

    die_with_parent()
    sys.argv = ["penstock", *arguments]
    code = 0

    def work() -> None:
        nonlocal code
        try:
            answer = app(standalone_mode=False)
        except Exception as error:
            if hasattr(error, "format_message"):  # the parser's own complaint; its class is private to typer
                raise UserError(error.format_message()) from None
            raise
        code = answer if isinstance(answer, int) else 0

    return run_reporting(folder, work) or code


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[2:])
    from penstock.config import leave

    leave(code)
