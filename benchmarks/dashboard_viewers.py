"""Viewers for `benchmarks/dashboard_load.py`, in a process of their own that lets all others go first, as browsers are on other machines.

    python -m benchmarks.dashboard_viewers PORT RUN NAME…        then lines on stdin: how many viewers there are to be

Each does what a page at *Explore* does: it asks for the courses of its panels when it comes, and again every `ZOOM_S` seconds, as if it zoomed; and
it follows the run's events. A line on stdout answers each of stdin: the viewers that have had an event, and the events of rows since the last line.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from urllib.parse import quote, urlencode

ZOOM_S, POINTS, ARRIVE_S = 20.0, 1000, 90.0


class Viewers:
    """So many viewers of a run as there are to be."""

    def __init__(self, port: int, run: str, names: list[str]) -> None:
        self._port, self._at = port, f"/api/v1/runs/{quote(run, safe='')}"
        self._panels = urlencode({"name": names}, doseq=True)
        self._tasks: list[asyncio.Task[None]] = []
        self._seen: set[int] = set()
        self.events = 0

    async def be(self, count: int) -> int:
        """Let there be so many, and wait until each has had an event; how many have."""
        for task in self._tasks[count:]:
            task.cancel()
        await asyncio.gather(*self._tasks[count:], return_exceptions=True)
        self._tasks, self._seen = self._tasks[:count], self._seen & set(range(count))
        self._tasks += [asyncio.create_task(self._view(number)) for number in range(len(self._tasks), count)]
        with suppress(TimeoutError):
            async with asyncio.timeout(ARRIVE_S):
                while len(self._seen) < count:
                    await asyncio.sleep(0.05)
        return len(self._seen)

    async def _view(self, number: int) -> None:
        await self._look()
        zooming = asyncio.create_task(self._zoom(number))
        reader, writer = await self._asked(f"/live?{self._panels}")
        try:
            while data := await reader.read(1 << 16):
                self.events += data.count(b"event: rows")
                self._seen.add(number)
        finally:
            zooming.cancel()
            writer.close()

    async def _zoom(self, number: int) -> None:
        """Ask for the panels again and again; viewers do so one after the other."""
        await asyncio.sleep(ZOOM_S * (number * 0.618 % 1))
        while True:
            await self._look()
            await asyncio.sleep(ZOOM_S)

    async def _look(self) -> None:
        reader, writer = await self._asked(f"/series?{self._panels}&points={POINTS}")
        while await reader.read(1 << 16):
            pass
        writer.close()

    async def _asked(self, what: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"GET {self._at}{what} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nConnection: close\r\n\r\n".encode())
        return reader, writer


async def main(port: int, run: str, names: list[str]) -> None:
    """Do what stdin says until it ends."""
    viewers, lines = Viewers(port, run, names), asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        before = viewers.events
        print(await viewers.be(int(line)), before, flush=True)
        viewers.events -= before


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
