"""An emulated cluster on one Linux machine: network namespaces as nodes, joined by links of limited bandwidth.

    node 0                          switch                          node 1
    lab0 10.77.0.1 ═ tbf ═► ◄═ tbf ═ port0 ─ bridge ─ port1 ═ tbf ═► ◄═ tbf ═ lab0 10.77.0.2

Every node is a namespace with its own loopback, on which its ranks talk to each other without limit, and one veth pair to a bridge, which has a
namespace of its own: the host's interfaces, routes and firewall are never touched, and nothing but the nodes can be reached from inside (no
internet). What each node sends and receives is limited at the two ends of its pair (`link.py`).

Namespaces are called `penstock-<pid>-<start of that process>-<serial>-…`, so that several labs run side by side, and each removes only what
belongs to it or to a process that is gone. Leaving the context ends whatever still runs inside and removes them, whatever happened; after
a `kill -9` the next lab does.

Cost: some 30 ms a node; a packet takes the kernel about as long as on loopback. Needs root or CAP_NET_ADMIN with CAP_SYS_ADMIN, and iproute2.
When not to use it: to measure CPUs or GPUs, which the nodes share.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from penstock.config import UserError
from penstock.lab.link import Link, parse_link

#: The nodes' end of their link.
INTERFACE = "lab0"
NAMESPACES = Path("/run/netns")
#: Programs the lab calls, with Debian's packages.
PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "setpriv": "util-linux", "mount": "mount", "hostname": "hostname"}
#: Longest wait for one command of iproute2, seconds.
DEADLINE_S = 20.0
#: Linux numbers of the capabilities.
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
NEEDS = "the network lab needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN, and `ip` and `tc` (Debian's package iproute2)"

_serial = itertools.count()


@dataclass(frozen=True)
class NodeBytes:
    """What a node's interface has sent and received since it exists, by the kernel's counters."""

    node: int
    tx_bytes: int
    rx_bytes: int


@dataclass(frozen=True)
class Nodes:
    """Nodes of an emulated cluster that exists; made by `emulated_nodes`."""

    name: str
    count: int
    link: Link
    #: A folder that is removed with the nodes: their table of hosts, and what ranks say.
    folder: Path
    #: Ports on which ranks may meet, one a start; all of a node's own are free.
    ports: Iterator[int] = field(default_factory=lambda: itertools.count(29500), compare=False, repr=False)

    def namespace(self, node: int) -> str:
        """The network namespace that is node `node`."""
        return f"{self.name}-node{node}"

    def address(self, node: int) -> str:
        """The node's address on the emulated network."""
        return f"10.77.0.{node + 1}"

    def inside(self, node: int, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on a node, under the node's hostname, to be killed when the thread that starts it ends."""
        enter = [program("setpriv"), "--pdeathsig", "KILL", "--", program("ip"), "netns", "exec", self.namespace(node)]
        # `ip netns exec` gives mounts of their own, so these hosts are known inside only.
        script = f'{program("mount")} --bind "$1" /etc/hosts; shift; {program("hostname")} "$0" && exec "$@"'
        return [*enter, program("unshare"), "--uts", "sh", "-c", script, f"node{node}", str(self.folder / "hosts"), *argv]

    def counters(self) -> list[NodeBytes]:
        """What each node has sent and received so far; inside a node it is also in /sys/class/net/lab0/statistics."""
        return [NodeBytes(node, *self._counts(node)) for node in range(self.count)]

    def _counts(self, node: int) -> tuple[int, int]:
        folder = f"/sys/class/net/{INTERFACE}/statistics"
        tx, rx = _run(["ip", "netns", "exec", self.namespace(node), "cat", f"{folder}/tx_bytes", f"{folder}/rx_bytes"]).split()
        return int(tx), int(rx)


@contextmanager
def emulated_nodes(count: int, bandwidth: str | Link) -> Iterator[Nodes]:
    """`count` nodes on a switch, each with a link of `bandwidth` ('200mbit', or a whole `Link`); they are gone afterwards, and all that runs on them.

    Raises `UserError` where the machine, its kernel or the privilege does not allow it. Within,
    SIGTERM and SIGHUP raise `KeyboardInterrupt` in the main thread, so that they clean up as well.
    """
    link = bandwidth if isinstance(bandwidth, Link) else parse_link(bandwidth)
    if not 1 <= count <= 250:
        raise UserError(f"--nodes {count}: an emulated cluster has 1 to 250 nodes")
    check_machine()
    sweep()
    name = f"penstock-{os.getpid()}-{_began(os.getpid())}-{next(_serial)}"
    with (
        ended_as_interrupted(),
        tempfile.TemporaryDirectory(prefix=f"{name}-files-", ignore_cleanup_errors=True) as folder,
    ):
        nodes = Nodes(name, count, link, Path(folder))
        addresses = {"localhost": "127.0.0.1"} | {f"node{node}": nodes.address(node) for node in range(count)}
        hosts = "".join(f"{address} {host}\n::ffff:{address} {host}\n" for host, address in addresses.items())  # the second as seen by IPv6 sockets
        (nodes.folder / "hosts").write_text(hosts)
        try:
            _build(nodes)
            yield nodes
        finally:
            with _undisturbed():
                for made in _names():
                    if made.startswith(f"{name}-"):
                        _remove(made)


def check_machine() -> None:
    """Raise `UserError` unless this is Linux with the privilege and the programs."""
    if sys.platform != "linux":
        raise UserError(f"the network lab is made of Linux network namespaces and {sys.platform} has none; run it on Linux")
    for name in PROGRAMS:
        program(name)
    held = int(re.findall(r"CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text())[0], 16)
    missing = [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]
    if missing:
        raise UserError(f"this process lacks {' and '.join(missing)}: {NEEDS}; run it with sudo, or in a container started with them")


def program(name: str) -> str:
    """The path of a program; administrators' folders count, which may be missing from a user's PATH."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise UserError(f"`{name}` is missing: {NEEDS}; install Debian's package {PROGRAMS[name]}")
    return path


def sweep() -> None:
    """Remove what labs left whose process is gone: namespaces with all that runs in them, and their folders."""
    for name in _names():
        if not _alive(name):
            _remove(name)
    for folder in Path(tempfile.gettempdir()).glob("penstock-*-*-*-files-*"):
        if not _alive(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _build(nodes: Nodes) -> None:
    switch = f"{nodes.name}-switch"
    _run(["ip", "netns", "add", switch])
    _run(["ip", "-n", switch, "link", "add", "switch", "type", "bridge", "mcast_snooping", "0"])
    _up(switch, "switch")
    for node in range(nodes.count):
        inside, port = nodes.namespace(node), f"port{node}"
        _run(["ip", "netns", "add", inside])
        _run(["ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", inside])
        _run(["ip", "-n", switch, "link", "set", port, "master", "switch"])
        _run(["ip", "-n", inside, "address", "add", f"{nodes.address(node)}/24", "dev", INTERFACE])
        _limit(inside, INTERFACE, nodes.link, outward=True)
        _limit(switch, port, nodes.link, outward=False)
        _run(["ip", "-n", inside, "link", "set", "lo", "up"])
        _up(switch, port)
        _up(inside, INTERFACE)


def _up(namespace: str, interface: str) -> None:
    """Switch an interface on, without an IPv6 address, whose announcements would be counted."""
    _run(["ip", "-n", namespace, "link", "set", interface, "addrgenmode", "none", "up"])


def _limit(namespace: str, interface: str, link: Link, outward: bool) -> None:
    """Limit what leaves through an interface; latency and loss are added on the way out of a node only, by frames, which are cut beforehand."""
    add = ["tc", "-n", namespace, "qdisc", "add", "dev", interface]
    if not (outward and link.needs_netem):
        _run([*add, "root", *link.bandwidth_limit()], missing="tbf (CONFIG_NET_SCH_TBF, module sch_tbf)")
        return
    lacking = "netem (CONFIG_NET_SCH_NETEM, module sch_netem), which --latency and --loss need; leave both out, --bandwidth works without it"
    _run([*add, "root", "handle", "1:", *link.delay_and_loss()], missing=lacking)
    _run([*add, "parent", "1:1", "handle", "2:", *link.bandwidth_limit()])
    if link.loss:
        _run(["ip", "-n", namespace, "link", "set", interface, "gso_max_segs", "1"])


def _run(argv: Sequence[str], missing: str | None = None) -> str:
    """Run a command of iproute2; `missing` names what the kernel lacks if it knows no such kind."""
    words = " ".join(argv)
    try:
        done = subprocess.run([program(argv[0]), *argv[1:]], capture_output=True, text=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise UserError(f"`{words}` did not end within {DEADLINE_S:.0f} s; look at the kernel's log (dmesg)") from None
    if done.returncode == 0:
        return done.stdout
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
    if missing and ("unknown" in reason or "No such file" in reason):
        raise UserError(f"this kernel ({os.uname().release}) lacks {missing}")
    raise UserError(f"`{words}` failed: {reason}; {NEEDS}")


def _names() -> list[str]:
    """Namespaces of labs, of this process and others."""
    return sorted(path.name for path in NAMESPACES.glob("penstock-*-*-*")) if NAMESPACES.is_dir() else []


def _alive(name: str) -> bool:
    """Whether the process that made what is called `name` is still there; names of another form are left alone."""
    parts = re.match(r"penstock-(\d+)-(\d+)-\d+-", name)
    return parts is None or _began(int(parts[1])) == int(parts[2])


def _began(pid: int) -> int | None:
    """When a process began, in clock ticks since boot, which tells it from a later one of the same number; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] not in "ZX" else None


def _remove(name: str) -> None:
    """Kill what runs in a namespace and delete it; another lab may be doing the same."""
    with suppress(UserError):
        left = []
        for pid in _run(["ip", "netns", "pids", name]).split():
            with suppress(psutil.NoSuchProcess):
                left.append(psutil.Process(int(pid)))
                left[-1].kill()
        _, stuck = psutil.wait_procs(left, timeout=DEADLINE_S / 4)
        if stuck:
            print(f"penstock: processes {[p.pid for p in stuck]} of {name} do not end", file=sys.stderr)
        _run(["ip", "netns", "delete", name])


@contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM and SIGHUP, as on Ctrl-C, where they would end this process."""
    here = threading.current_thread() is threading.main_thread()
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if here and signal.getsignal(number) == signal.SIG_DFL]

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold signals that would interrupt back until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
