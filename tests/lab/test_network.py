"""The network lab: links that limit, runs that are the same as local ones, and nothing left behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import Command, penstock, refused, small_sets, summary

from penstock.config import RankFailed, UserError
from penstock.lab import emulated_nodes, parse_link, ranks_on_nodes
from penstock.lab.namespaces import check_machine, sweep
from penstock.store import list_snapshots


def why_not():
    """Why this machine cannot make an emulated cluster; None if it can."""
    try:
        with emulated_nodes(1, "1gbit"):
            return None
    except UserError as error:
        return str(error)


REASON = why_not()
lab = pytest.mark.skipif(REASON is not None, reason=f"no network lab here: {REASON}")


def namespaces(pid=None):
    """Namespaces of labs of the process `pid`, or of any."""
    folder = Path("/run/netns")
    return [path.name for path in folder.glob(f"penstock-{pid or '*'}-*")] if folder.is_dir() else []


def wait_until(true, deadline_s=60, what="it"):
    """Look until `true()` is, and return what it gave."""
    end = time.monotonic() + deadline_s
    while not (answer := true()):
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s} s"
        time.sleep(0.02)
    return answer


RECEIVE = """
import socket, sys, time
with socket.create_server((sys.argv[1], 4000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    count = len(connection.recv(1 << 16, socket.MSG_WAITALL))  # what the bucket lets through at once does not count
    first, began = count, time.perf_counter()
    while data := connection.recv(1 << 20):
        count += len(data)
    print(count, (count - first) / (time.perf_counter() - began), flush=True)
"""
SEND = "import socket, sys; socket.create_connection((sys.argv[1], 4000)).sendall(bytes(int(sys.argv[2])))"


def transfer(nodes, source, target, n_bytes):
    """Send bytes between nodes (or inside one) and return the rate seen by the receiver, bytes/s."""
    python = lambda node, code, *words: nodes.inside(node, [sys.executable, "-c", code, *map(str, words)])  # noqa: E731
    receiver = subprocess.Popen(python(target, RECEIVE, nodes.address(target)), stdout=subprocess.PIPE, text=True)
    assert receiver.stdout.readline() == "ready\n"
    subprocess.run(python(source, SEND, nodes.address(target), n_bytes), check=True, timeout=60)
    count, rate = receiver.communicate(timeout=60)[0].split()
    assert int(count) == n_bytes
    return float(rate)


@lab
@pytest.mark.parametrize("megabits", [20, 200])
def test_a_link_carries_its_bandwidth_and_not_more(megabits):
    n_bytes = megabits * 1_000_000 // 8 // 4  # a quarter of a second
    with emulated_nodes(2, f"{megabits}mbit") as nodes:
        before = nodes.counters()
        sent = [0, 0]
        for way in ((0, 1), (1, 0)):
            fastest = 0.0
            while fastest < 0.85 * megabits:  # a busy machine falls behind, so it may try again
                assert sent[way[0]] < 20, f"{fastest:.0f} Mbit/s is the most that came over a link of {megabits}"
                rate = transfer(nodes, *way, n_bytes) * 8 / 1e6
                assert rate <= 1.02 * megabits
                sent[way[0]], fastest = sent[way[0]] + 1, max(fastest, rate)
        for old, new, out, back in zip(before, nodes.counters(), sent, reversed(sent)):
            assert out * n_bytes <= new.tx_bytes - old.tx_bytes <= 1.06 * out * n_bytes
            assert back * n_bytes <= new.rx_bytes - old.rx_bytes <= 1.06 * back * n_bytes


@pytest.mark.slow
@lab
def test_a_node_receives_no_faster_from_two_than_from_one():
    with emulated_nodes(3, "40mbit") as nodes:
        began = time.perf_counter()
        code = RECEIVE.replace("4000", "int(sys.argv[2])")
        receivers = [
            subprocess.Popen(nodes.inside(2, [sys.executable, "-c", code, nodes.address(2), str(port)]), stdout=subprocess.PIPE, text=True) for port in (4000, 4001)
        ]
        assert [r.stdout.readline() for r in receivers] == ["ready\n"] * 2
        began = time.perf_counter()
        senders = [
            subprocess.Popen(nodes.inside(i, [sys.executable, "-c", SEND.replace("4000", str(4000 + i)), nodes.address(2), "2000000"])) for i in (0, 1)
        ]
        answers = [r.communicate(timeout=60)[0].split() for r in receivers]
        seconds = time.perf_counter() - began
        assert [s.wait(10) for s in senders] == [0, 0] and [a[0] for a in answers] == ["2000000"] * 2
        assert seconds >= 0.98 * 4_000_000 * 8 / 40e6


@lab
def test_traffic_inside_a_node_is_not_limited_nor_counted():
    with emulated_nodes(2, "10mbit") as nodes:
        assert transfer(nodes, 1, 1, 20_000_000) * 8 > 200e6
        assert nodes.counters()[1].tx_bytes < 10_000


@lab
def test_nodes_have_names_of_their_own_and_reach_only_each_other():
    with emulated_nodes(2, "1gbit") as nodes:
        assert subprocess.run(nodes.inside(1, ["hostname"]), capture_output=True, text=True, timeout=20).stdout == "node1\n"
        address = "import socket; print(socket.gethostbyname(socket.gethostname()), socket.gethostbyname('node0'))"
        found = subprocess.run(nodes.inside(1, [sys.executable, "-c", address]), capture_output=True, text=True, timeout=20).stdout
        assert found.split() == [nodes.address(1), nodes.address(0)]
        interfaces = subprocess.run(nodes.inside(1, ["ls", "/sys/class/net"]), capture_output=True, text=True, timeout=20).stdout.split()
        assert interfaces == ["lab0", "lo"]
        assert len(namespaces(os.getpid())) == 3
        with emulated_nodes(1, "1gbit"):
            assert len(namespaces(os.getpid())) == 5
    assert not namespaces(os.getpid())


@lab
@pytest.mark.slow
def test_a_run_across_nodes_equals_the_same_run_on_one_machine(tmp_path):
    sets = small_sets(tmp_path)
    local = summary(penstock("train", *sets, "--nproc", 2, "--run-dir", tmp_path / "local", "--json"))
    done = penstock("lab", "network", "--nodes", 2, "--ranks-per-node", 1, "--bandwidth", "100mbit", "--json", "--", "train", *sets, "--run-dir", tmp_path / "lab")
    answer = summary(done)
    assert answer["command"]["weights_digest"] == local["weights_digest"] and answer["command"]["run"] == str(tmp_path / "lab")
    network = answer["network"]
    assert network["bandwidth"] == 100_000_000 and network["seconds"] > 0
    (one, two), parameters = network["nodes"], answer["command"]["parameters"]
    assert one["tx_bytes"] > 6 * 4 * parameters / 2 and two["rx_bytes"] == pytest.approx(one["tx_bytes"], rel=0.01)

    done = penstock("lab", "network", "--ranks-per-node", 2, "--bandwidth", "1gbit", "--", "resume", tmp_path / "lab", "--set", "train.steps=8")
    assert "step 8" in done.stdout and "2 nodes × 2 ranks, 1 Gbit/s each way" in done.stdout and "node 1" in done.stdout


@pytest.mark.slow
@lab
def test_a_command_of_one_process_runs_on_the_first_node():
    done = penstock("lab", "network", "--json", "config", "tiny", "--set", "optim.lr=0.5")
    assert summary(done)["command"]["optim"]["lr"] == 0.5 and len(summary(done)["network"]["nodes"]) == 2
    assert "did you mean 'optim.lr'" in refused_live("lab", "network", "config", "--explain", "optim.lrr")


def refused_live(*arguments):
    """The message of a command that refuses by itself, before the network's table."""
    done = penstock(*arguments, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    return done.stderr


@lab
@pytest.mark.slow
def test_a_mistake_that_every_rank_finds_is_told_once():
    message = refused("lab", "network", "--ranks-per-node", 1, "--", "train", "tiny", "--set", "optim.lrr=1")
    assert message.count("optim.lrr") == 1 and message.startswith("penstock: tiny: unknown") and len(message.splitlines()) == 1
    assert "No such option" in refused("lab", "network", "--nodes", 1, "--ranks-per-node", 1, "--", "train", "--nonsense")


@lab
@pytest.mark.slow
def test_a_mistake_that_one_rank_finds_is_told_once(tmp_path):
    message = refused("lab", "network", "--ranks-per-node", 1, "--", "train", "tiny", "--set", f"data.path={tmp_path}/nothing", "--run-dir", tmp_path / "run")
    assert message.startswith("penstock: data.path = ") and message.count("does not exist") == 1 and len(message.splitlines()) == 1


def run_ranks(argv, per_node, folder, deadline_s):
    """Run a module or code as ranks of two nodes."""
    with emulated_nodes(2, "1gbit") as nodes, ranks_on_nodes(nodes, argv, per_node, folder) as ranks:
        return ranks.wait("mend it", deadline_s)


#: One rank fails with a word to the launcher; the others sleep, and need nothing imported for it.
DIES = """
import os, pathlib, sys, time
if os.environ["RANK"] != sys.argv[2]:
    time.sleep(600)
from penstock.engine.guard.failures import run_reporting
def work():
    print("some words of mine", flush=True)
    raise ValueError("a fault of mine")
sys.exit(run_reporting(pathlib.Path(sys.argv[1]), work))
"""


@pytest.mark.slow
@lab
def test_a_dying_rank_ends_the_others_and_is_named(tmp_path, capfd):
    began = time.monotonic()
    with pytest.raises(RankFailed, match="rank 3 failed with ValueError: a fault of mine"):
        run_ranks(["-c", DIES, str(tmp_path), "3"], 2, tmp_path, deadline_s=300)
    assert time.monotonic() - began < 240, "the others would have slept for longer"
    assert "[node 1, rank 3] some words of mine" in capfd.readouterr().err
    assert not namespaces(os.getpid())


@pytest.mark.slow
@lab
def test_a_deadline_ends_ranks_that_do_not(tmp_path):
    with pytest.raises(RankFailed, match=r"ranks \[0, 1\] did not end within 1 s"):
        run_ranks(["-c", "import time; time.sleep(600)"], 1, tmp_path, deadline_s=1)
    assert not namespaces(os.getpid())


def start_long(tmp_path):
    """A lab whose run does not end by itself, once it has saved; its process, its run and its ranks' ids."""
    run = tmp_path / "run"
    sets = small_sets(tmp_path, train__steps=100_000, snapshot__every=2, eval__every=0)
    process = Command("lab", "network", "--ranks-per-node", "1", "--bandwidth", "1gbit", "--", "train", *sets, "--run-dir", run)

    def saved():
        assert process.poll() is None, process.communicate()
        return list_snapshots(run)

    wait_until(saved, 240, "the first snapshot")
    inside = [subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split() for name in namespaces(process.pid)]
    ranks = [int(pid) for pids in inside for pid in pids]
    assert len(namespaces(process.pid)) == 3 and len(ranks) >= 2
    return process, run, ranks


def gone(pids):
    """Whether no such process runs."""
    def running(pid):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        return False

    return not any(map(running, pids))


@lab
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_leaves_nothing_behind(tmp_path, number):
    process, run, ranks = start_long(tmp_path)
    os.kill(process.pid, number)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "interrupted after step" in err and err.count("stopping after this step") == 1 and "node 1" in out
    assert gone(ranks) and not namespaces(process.pid)
    assert json.loads((run / "summary.json").read_text())["state"] == "interrupted"


@lab
@pytest.mark.slow
def test_a_killed_rank_ends_the_lab_within_seconds(tmp_path):
    process, _, ranks = start_long(tmp_path)
    os.kill(ranks[-1], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1 and "was killed by SIGKILL; if the run has a snapshot" in err
    assert gone(ranks) and not namespaces(process.pid)


@lab
@pytest.mark.slow
def test_the_next_lab_removes_what_a_killed_one_left(tmp_path):
    process, _, ranks = start_long(tmp_path)
    process.kill()
    process.wait()
    wait_until(lambda: gone(ranks), 60, "the end of the ranks")
    assert namespaces(process.pid)
    with emulated_nodes(1, "1gbit"):
        assert not namespaces(process.pid) and namespaces(os.getpid())
        sweep()
        assert namespaces(os.getpid())


def test_links_are_told_in_the_words_of_tc():
    assert parse_link("200mbit").bits_per_s == parse_link("25MBps").bits_per_s == 200_000_000
    assert parse_link("1gibit").bits_per_s == 2**30
    link = parse_link("2.5gbit", "250us", "0.1%")
    assert (link.bits_per_s, link.latency_s, link.loss) == (2_500_000_000, pytest.approx(250e-6), pytest.approx(1e-3))
    assert link.needs_netem and not parse_link("1gbit").needs_netem
    assert link.queue > link.burst >= 2.5e9 / 8 / 1000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "needs a command"),
        (("trian", "tiny"), "'trian' is no command of Penstock's (did you mean 'train'?)"),
        (("lab", "network"), "does not run inside itself"),
        (("--nodes", 0, "train", "tiny"), "--nodes 0"),
        (("--nodes", 1000, "train", "tiny"), "2000 is above"),
        (("--bandwidth", "fast", "train", "tiny"), "'fast' is no rate"),
        (("--bandwidth", "0mbit", "train", "tiny"), "'0mbit' is no rate"),
        (("--latency", "soon", "train", "tiny"), "'soon' is no time"),
        (("--loss", "100%", "train", "tiny"), "'100%' is no share"),
        (("train", "tiny", "--nproc", 4), "leave it out"),
    ],
)
def test_a_lab_that_cannot_be_is_refused_in_one_sentence(arguments, told, capsys, monkeypatch):
    from penstock.cli import main

    monkeypatch.setattr(sys, "argv", ["penstock", "lab", "network", *map(str, arguments)])
    assert main() == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err and len(err.splitlines()) == 1


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name == "tc" else f"/bin/{name}")
    with pytest.raises(UserError, match=r"`tc` is missing.*iproute2"):
        check_machine()
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/bin/{name}")
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "Name:\tpython\nCapEff:\t0000000000001000\n")
    with pytest.raises(UserError, match="lacks CAP_SYS_ADMIN: the network lab needs root"):
        check_machine()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="darwin has none"):
        check_machine()


@lab
def test_latency_works_or_the_kernel_is_blamed():
    try:
        with emulated_nodes(2, parse_link("100mbit", "20ms")) as nodes:
            began = time.perf_counter()
            transfer(nodes, 0, 1, 1000)
            assert time.perf_counter() - began > 0.06
    except UserError as error:
        assert "lacks netem" in str(error) and "leave both out" in str(error)
    assert not namespaces(os.getpid())
