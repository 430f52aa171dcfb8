"""The server as a process: a port, a token, a link, and its end.

    RUNS_DIR/.dashboard.json   pid, host, port and token of the server of a folder, readable by its owner alone, as long as it lives

By that file the next one who wants the page of the folder finds it (`background.py`). The token stands in the link's fragment, which browsers send to
nobody, and the link is printed once on a terminal; where stderr is no terminal but a log, the link comes without it. A server that was started by a
run ends by itself when nobody has looked and no run has trained for a quarter of an hour, or for two minutes if nobody ever looked. Cost: 70 MB of
memory. When not to use it: inside a training process.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from penstock.config import UserError, disk_errors
from penstock.dashboard.access import LEAST_TOKEN, Access, new_token
from penstock.dashboard.app import build_app
from penstock.dashboard.children import TOKEN
from penstock.dashboard.house import House
from penstock.dashboard.place import FILE, Place

PORT = 8080
#: Ports that are tried from the wanted one on.
PORTS = 100
#: Seconds without viewers and training runs after which a server in the background ends, if anybody ever looked and if not; and between two looks.
ALONE_S, UNSEEN_S, LOOK_S = 900.0, 120.0, 15.0
#: Seconds that open streams have to end when the server does.
END_S = 2


@dataclass(frozen=True)
class Wanted:
    """What server is wanted; `background`: it ends by itself when it is needed no more."""

    runs_dir: Path
    host: str = "127.0.0.1"
    port: int = PORT
    token_file: Path | None = None
    allowed: tuple[str, ...] = ()
    background: bool = False


def serve(wanted: Wanted, tell: Callable[[Place], None]) -> None:
    """Serve until the process is ended; `tell` is called once, when it answers. Raises `UserError` for a folder, host or token that will not do."""
    runs_dir = wanted.runs_dir
    if not runs_dir.is_dir():
        raise UserError(f"there is no folder {runs_dir}; give the folder that holds the runs, or start a run with `penstock train`")
    token = token_of(wanted.token_file)
    listener, busy = _listener(wanted.host, wanted.port)
    with listener:
        place = Place(wanted.host, listener.getsockname()[1], token, busy)
        app = build_app(runs_dir, Access(wanted.host, token, wanted.allowed))
        config = uvicorn.Config(
            app, access_log=False, log_level="warning", server_header=False, ws="none", http="h11", timeout_graceful_shutdown=END_S,
            h11_max_incomplete_event_size=64 << 10, proxy_headers=False,
        )  # fmt: skip
        asyncio.run(_run(_Server(config), listener, app.state.house, place, wanted, tell))


def token_of(file: Path | None) -> str:
    """The token in a file, or in the environment, or a new one; raises `UserError` for one that is too short."""
    given, where = os.environ.get(TOKEN, ""), TOKEN
    if file is not None:
        try:
            given, where = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the token in {file}: {error}; give a file that holds it, or leave out --token-file") from None
    if not given and file is None:
        return new_token()
    if len(given) < LEAST_TOKEN or not given.isascii() or not given.isprintable():
        raise UserError(f"the token in {where} must have {LEAST_TOKEN} or more plain letters; make one with `openssl rand -hex 32`")
    return given


class _Server(uvicorn.Server):
    """A server that ends when it is asked to, and then returns, so that what it left on the disk is taken away."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear the signals that ask a process to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


async def _run(server: _Server, listener: socket.socket, house: House, place: Place, wanted: Wanted, tell: Callable[[Place], None]) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        file = wanted.runs_dir / FILE
        written = _write(file, place)
        tell(place)
        ending = asyncio.create_task(_end_alone(server, house)) if wanted.background else None
        try:
            await serving
        finally:
            if ending is not None:
                ending.cancel()
            if written and _pid_in(file) == os.getpid():
                file.unlink(missing_ok=True)
    await serving


async def _end_alone(server: _Server, house: House) -> None:
    """End the server when nobody has needed it for a while, or its folder is gone."""
    needed = time.monotonic()
    while time.monotonic() - needed < (ALONE_S if house.hub.watched_at else UNSEEN_S) and house.catalog.folder.is_dir():
        await asyncio.sleep(LOOK_S)
        rows = await asyncio.to_thread(house.catalog.rows)
        if house.hub.viewers or any(row["state"] == "running" for row in rows):
            needed = time.monotonic()
        needed = max(needed, house.hub.watched_at)
    server.should_exit = True


def _listener(host: str, port: int) -> tuple[socket.socket, int | None]:
    """A socket at the port or the next that is free, and the wanted port if it was not."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise UserError(f"there is no address {host!r} to listen at ({error}); use 127.0.0.1, or one of this machine's own") from None
    for number in range(port, min(port + PORTS, 1 << 16)) if port else [0]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(128)
        except PermissionError:
            listener.close()
            raise UserError(f"port {number} is not yours to use; choose --port from 1024 on") from None
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"cannot listen at {host}: {error.strerror}; use 127.0.0.1, or an address of this machine's own") from None
            continue
        return listener, (port if number != port else None)
    raise UserError(f"no port from {port} to {port + PORTS - 1} is free at {host}; choose another --port, or 0 for any")


def _write(file: Path, place: Place) -> bool:
    """Leave word where the server is, for the owner alone; whether that could be done (a folder may be read-only)."""
    told: dict[str, Any] = {"pid": os.getpid(), "host": place.host, "port": place.port, "token": place.token}
    told["machine"] = socket.gethostname()
    partial = file.with_name(f"{FILE}.{os.getpid()}.partial")
    with suppress(UserError, OSError), disk_errors(file.parent, "leaving word of the dashboard"):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            json.dump(told, opened)
        os.replace(partial, file)
        return True
    return False


def _pid_in(file: Path) -> int | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        return int(json.loads(file.read_text(encoding="utf-8"))["pid"])
    return None
