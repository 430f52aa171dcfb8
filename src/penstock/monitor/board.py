"""TensorBoard event files, through the `tensorboard` package's own asynchronous writer.

The package is imported only when a run writes events; torch's wrapper is avoided because it imports far more. On resuming,
an event that starts a new session at the step tells TensorBoard to forget what came after it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

#: Seconds between writes to the disk, and thus the most that a killed run's curves lack (the package's default is 120).
FLUSH_EVERY_S = 10


class TensorBoardWriter:
    """Scalars by tag and step into `folder`; a resumed run passes the step it goes on from."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder), flush_secs=FLUSH_EVERY_S)
        if resume_step:
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(self._event(wall_time=time.time(), step=resume_step + 1, session_log=log))

    def write(self, step: int, values: dict[str, Any], at: float | None = None) -> None:
        """Record numbers under their tags, measured `at` (unix seconds; none: now); anything that is not a number is left out."""
        scalars = [self._summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items() if isinstance(v, (int, float))]
        self._writer.add_event(self._event(wall_time=at or time.time(), step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        """Write out and close the file."""
        self._writer.close()
