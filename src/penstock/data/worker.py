"""A preparing process: `python -m penstock.data.worker` reads tasks as lines on stdin and answers with lines on stdout.

It ends when its stdin closes or nobody reads its stdout any more, so it does not outlive a parent that was killed. It imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

from penstock.config import UserError
from penstock.data.tasks import TrainTask, parse_task, run_task


def answer(line: str, emit: Any) -> dict[str, Any]:
    """Run one task and describe how it ended: `result`, `user_error`, `os_error` or `fault`."""
    try:
        task = parse_task(line)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if isinstance(task, TrainTask) else "false"  # only training is alone
        return {"result": run_task(task, lambda done: emit({"done": done}))}
    except UserError as error:
        return {"user_error": str(error)}
    except OSError as error:
        return {"os_error": [error.errno, error.strerror, error.filename]}
    except Exception:
        return {"fault": traceback.format_exc()}


def main() -> None:
    """Serve tasks until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(message: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps(message) + "\n")
            answers.flush()
        except BrokenPipeError:
            os._exit(1)

    for line in sys.stdin:
        emit(answer(line, emit))


if __name__ == "__main__":
    main()
