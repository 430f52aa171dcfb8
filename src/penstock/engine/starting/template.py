"""Ranks are forked from one process that has imported everything: a *template*.

Starting Python with torch takes some four seconds of a core, and as many ranks as a host has, and every one that replaces a lost one, would pay them
again. A template pays once. It computes nothing, holds no CUDA context and has no threads of its own, so that forking it is safe; each child becomes
`python -m MODULE ARGUMENTS…` in all but name. The template is itself a fork of the process that asks for it, where that has started no thread since
its imports, and otherwise a new Python.

    parent ── SOCK_SEQPACKET, one JSON object a message; a start carries its stdout and stderr ── template ── fork ── rank 0, rank 1, …

The template ends with its parent, and ranks with the template. Only the template waits for its children and signals them, so no signal can reach
another process that got a dead one's number.

Cost: a start takes some 20 ms, and a rank shares the imported code's memory with the others. Elsewhere than on Linux, where forking a process with
system libraries loaded is not safe, every rank is a new Python.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from multiprocessing.util import _exit_function  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import psutil
import torch

from penstock.config import RankFailed
from penstock.engine.guard.failures import die_with_parent

#: Longest wait, seconds, for a template to start a process, its own start included.
START_S = 120.0
#: Seconds between two looks at processes whose end nobody tells.
LOOK_S = 0.02
#: Largest message, bytes.
LARGEST = 1 << 17
_TASKS = Path("/proc/self/task")


class Source(Protocol):
    """What starts processes and knows what becomes of them."""

    def start(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a module in a process; its number in the system."""

    def exit_code(self, pid: int) -> int | None:
        """How a process ended, negative for a signal; None while it lives."""

    def signal(self, pid: int, number: int) -> None:
        """Send a process a signal, if it lives."""

    def wait(self, seconds: float) -> None:
        """Wait until something may have ended, so long at most."""


class Child:
    """`python -m module arguments`, in a process that was started here."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.source = the_source()
        self.pid = self.source.start(module, arguments, environment)

    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None while it lives."""
        return self.source.exit_code(self.pid)

    def send_signal(self, number: int, /) -> None:
        """Send it a signal, if it lives."""
        self.source.signal(self.pid, number)


C = TypeVar("C", bound=Child)


def wait_for_end(children: Collection[C], seconds: float) -> list[C]:
    """Those that have ended, as soon as there are any, or none after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        ended = [child for child in children if child.exit_code() is not None]
        left = end - time.monotonic()
        if ended or left <= 0:
            return ended
        next(iter(children)).source.wait(left) if children else time.sleep(left)


def wait_for_all(children: Collection[Child], seconds: float) -> None:
    """Wait until all of them have ended, so long at most."""
    end = time.monotonic() + seconds
    while left := [child for child in children if child.exit_code() is None]:
        if time.monotonic() >= end:
            return
        wait_for_end(left, end - time.monotonic())


def the_source() -> Source:
    """What this process starts ranks with; the first call makes it, and is best made before anything is computed."""
    global _source
    if _source is None or (isinstance(_source, Template) and _source.ended):
        _source = Template() if sys.platform == "linux" else Spawner()
    return _source


_source: Source | None = None


class Template:
    """This process's side of its template."""

    def __init__(self) -> None:
        self.ended = False
        self._codes: dict[int, int] = {}
        self._environment = dict(os.environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if _threads() <= _THREADS and threading.active_count() == 1:
            self._fork(theirs)
        else:
            code = f"import socket; from penstock.engine.starting.template import serve; serve(socket.socket(fileno={theirs.fileno()}))"
            command = [sys.executable, "-c", code]
            subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def _fork(self, theirs: socket.socket) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python sees numpy's threads, which are ready for a fork
            if os.fork() == 0:
                self._socket.close()
                serve(theirs)

    def start(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a module in a process; raises `RankFailed` if the template is gone or does not answer in time."""
        changed = {name: value for name, value in environment.items() if self._environment.get(name) != value}
        gone = [name for name in self._environment if name not in environment]
        order = {"module": module, "arguments": list(arguments), "environment": changed, "gone": gone, "folder": os.getcwd()}
        with suppress(OSError):
            socket.send_fds(self._socket, [json.dumps(order).encode()], [1, 2])
        end = time.monotonic() + START_S
        while (left := end - time.monotonic()) > 0 and not self.ended:
            for answer in self._messages(left):
                if "started" in answer:
                    return answer["started"]
        raise RankFailed(f"the process that starts ranks {'has ended' if self.ended else 'does not answer'}; start the command again")

    def exit_code(self, pid: int) -> int | None:
        """How a process ended, negative for a signal; None while it lives. How one ended that outlived the template nobody knows: as if killed."""
        self._messages(0.0)
        return self._codes.get(pid, -signal.SIGKILL if self.ended and not _lives(pid) else None)

    def signal(self, pid: int, number: int) -> None:
        """Send a process a signal, if it lives."""
        with suppress(OSError):
            if not self.ended:
                self._socket.send(json.dumps({"signal": int(number), "pid": pid}).encode())
            elif _lives(pid):
                os.kill(pid, number)

    def wait(self, seconds: float) -> None:
        """Wait until something may have ended, so long at most."""
        if self.ended:
            time.sleep(min(LOOK_S, seconds))
        else:
            select.select([self._socket], [], [], seconds)

    def _messages(self, seconds: float) -> list[dict[str, Any]]:
        """What the template has said, waiting so long at most for a first message; ends are noted."""
        found: list[dict[str, Any]] = []
        while not self.ended and select.select([self._socket], [], [], 0.0 if found else seconds)[0]:
            try:
                data = self._socket.recv(LARGEST)
            except ConnectionError:
                data = b""
            if not data:
                self.ended = True
                break
            found.append(message := json.loads(data))
            if "ended" in message:
                self._codes[message["ended"]] = message["code"]
        return found


class Spawner:
    """Starts every process as a new Python."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a module in a process; its number in the system."""
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], env=dict(environment), stdin=subprocess.DEVNULL)
        self._processes[process.pid] = process
        return process.pid

    def exit_code(self, pid: int) -> int | None:
        """How a process ended, negative for a signal; None while it lives."""
        return self._processes[pid].poll()

    def signal(self, pid: int, number: int) -> None:
        """Send a process a signal, if it lives."""
        with suppress(ProcessLookupError):
            self._processes[pid].send_signal(number)

    def wait(self, seconds: float) -> None:
        """Wait until something may have ended, so long at most."""
        time.sleep(min(LOOK_S, seconds))


def serve(line: socket.socket) -> NoReturn:
    """Fork and signal processes as told over `line`, and tell of their ends, until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when ranks end, and this process ends with it
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    alive: set[int] = set()
    with suppress(OSError):
        while True:
            ready, _, _ = select.select([line, wake], [], [])
            if wake in ready:
                wake.recv(4096)
                _tell_ends(line, alive)
            if line in ready:
                data, files, _, _ = socket.recv_fds(line, LARGEST, 2)
                if not data:
                    break
                order = json.loads(data)
                if "module" not in order:
                    if order["pid"] in alive:
                        os.kill(order["pid"], order["signal"])
                    continue
                order["template"] = os.getpid()
                pid = os.fork()
                if pid == 0:
                    for end in (line, wake, waker):
                        end.close()
                    become(order, files)
                alive.add(pid)
                line.send(json.dumps({"started": pid}).encode())
                for file in files:
                    os.close(file)
    os._exit(0)


def _tell_ends(line: socket.socket, alive: set[int]) -> None:
    """Tell of the children that have ended, and forget them."""
    for pid in list(alive):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            alive.discard(pid)
            line.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def become(order: Mapping[str, Any], files: Sequence[int]) -> NoReturn:
    """Be the process that was ordered, in a fork of the template."""
    code: int | str | None = 0
    try:
        _look_like_new(order, files)
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    with suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _look_like_new(order: Mapping[str, Any], files: Sequence[int]) -> None:
    """Put signals, files, environment and threads as in a process that has just been started."""
    die_with_parent()
    if os.getppid() != order["template"]:
        os._exit(1)  # it died before this process could ask to die with it
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    atexit._clear()  # the parent's
    atexit.register(_exit_function)
    # first the streams, as those before them may close their files when they go, and then the files
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w", closefd=False), open(2, "w", 1, closefd=False)  # noqa: SIM115
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for to, file in zip((1, 2), files):
        os.dup2(file, to)
        os.close(file)
    for name in order["gone"]:
        os.environ.pop(name, None)
    os.environ |= order["environment"]
    os.chdir(order["folder"])
    sys.argv = [order["module"], *order["arguments"]]
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package", category=RuntimeWarning)


def _lives(pid: int) -> bool:
    """Whether a process that is not a child of this one has not ended."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _threads() -> int:
    """Threads of this process, those of libraries included; 0 where the system does not tell."""
    return len(os.listdir(_TASKS)) if _TASKS.is_dir() else 0


#: Threads that importing started (numpy's, which stop for a fork).
_THREADS = _threads()
