"""The live line: where the run is, how well and how fast, on one line of the terminal.

On a terminal the line is redrawn in place (ten times a second at most), leaving out what does not fit, because half a number
misleads; elsewhere, in a log file say, a plain line comes at the first step, then every few seconds and at the end, so logs stay short.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from typing import Any, TextIO

from penstock.monitor.units import count, duration, size

REDRAW_S, PLAIN_S = 0.1, 5.0

#: What a narrow terminal does without, in this order.
DISPENSABLE = ("memory", "peak", "val", "speed", "eta", "loss")


class LiveLine:
    """Shows rows of kinds "train" and "eval" as they come."""

    def __init__(self, total_steps: int, stream: TextIO | None = None) -> None:
        self._total, self._stream = total_steps, stream or sys.stderr
        self._tty = self._stream.isatty()
        self._row: dict[str, Any] = {}
        self._seconds: deque[float] = deque(maxlen=50)
        self._drawn, self._shown_step, self._width = float("-inf"), -1, 0

    def update(self, row: dict[str, Any]) -> None:
        """Take in a row and redraw when due."""
        self._row |= row
        if "step_s" in row:
            self._seconds.append(float(row["step_s"]))
        now = time.monotonic()
        last = row.get("step") == self._total and "loss" in row
        if last or now - self._drawn >= (REDRAW_S if self._tty else PLAIN_S):
            self._drawn = now
            self._draw()

    def until(self, total_steps: int) -> None:
        """The run is to end after another number of steps."""
        self._total = total_steps

    def message(self, text: str) -> None:
        """Print a line above the live one."""
        self._clear()
        print(text, file=self._stream, flush=True)
        if self._tty and self._row:
            self._draw()

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._tty and self._width:
            print(file=self._stream, flush=True)
            self._width = 0

    def text(self, width: int = 1000) -> str:
        """The line as it stands, in at most `width` characters."""
        parts = self._parts()
        for name in DISPENSABLE:
            if len("  ".join(parts.values())) > width:
                parts.pop(name, None)
        return "  ".join(parts.values())[:width]

    def _parts(self) -> dict[str, str]:
        row = self._row
        step = int(row.get("step", 0))
        parts = {"step": f"step {step:>{len(str(self._total))}}/{self._total}"}
        if "loss" in row:
            parts["loss"] = f"loss {row['loss']:.4f}"
        if "val_loss" in row:
            parts["val"] = f"val {row['val_loss']:.4f}"
        if "tokens_per_s" in row:
            parts["speed"] = f"{count(row['tokens_per_s'])} tok/s"
            parts["peak"] = f"{row.get('mfu', 0.0):.0%} of peak"
            parts["memory"] = size(row.get("memory_bytes", 0))
        if self._seconds:
            typical = sorted(self._seconds)[len(self._seconds) // 2]
            parts["eta"] = f"ETA {duration((self._total - step) * typical)}"
        return parts

    def _columns(self) -> int:
        """Width of the terminal: COLUMNS if set, else standard output's, else (redirected) that of the stream itself."""
        try:
            own = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            own = os.terminal_size((80, 24))
        return shutil.get_terminal_size(own).columns or 80

    def _draw(self) -> None:
        if self._tty:
            line = self.text(max(1, self._columns() - 1))
            print("\r" + line.ljust(self._width), end="", file=self._stream, flush=True)
            self._width = len(line)
        elif self._row.get("step") != self._shown_step:
            self._shown_step = self._row.get("step", -1)
            print(self.text(), file=self._stream, flush=True)

    def _clear(self) -> None:
        if self._tty and self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._stream, flush=True)
            self._width = 0
