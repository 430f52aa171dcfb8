"""The server as a process: its port and token, what it leaves on the disk, its end, its memory without torch; and the page that a run brings along."""

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_runs import penstock, refused, small_sets
from tests.dashboard.made_runs import MadeRun, small_run
from tests.dashboard.made_values import MadeValues

from penstock.dashboard import background
from penstock.store import writer_lock

TOKEN = "a-token-of-a-test-that-is-long-enough"
DEADLINE_S = 60.0


class Server:
    """`penstock dashboard` as a user starts it, ended with the block."""

    def __init__(self, runs_dir, *options, **environment):
        command = [sys.executable, "-m", "penstock", "dashboard", str(runs_dir), "--json", *options]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"PENSTOCK_DASHBOARD_TOKEN": TOKEN} | environment)
        self.told = json.loads(self.process.stdout.readline() or "{}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()

    def get(self, path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.told["port"], timeout=DEADLINE_S)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S), self.process.stderr.read()


@pytest.fixture
def runs_dir(tmp_path):
    small_run(tmp_path / "runs", steps=4, ranks=1, layers=1)
    return tmp_path / "runs"


def until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_server_answers_and_leaves_word_for_its_owner_alone_until_it_ends(runs_dir):
    with Server(runs_dir, "--port", "0") as server:
        word = runs_dir / ".dashboard.json"
        assert stat.S_IMODE(word.stat().st_mode) == 0o600 and json.loads(word.read_text())["token"] == TOKEN
        assert server.get("/api/v1/runs?search=secret-words")[0] == 200 and server.get("/api/v1/no?secret-words")[0] == 404
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "libtorch" not in maps
        code, printed = server.end(signal.SIGINT)
        assert code == 0 and not word.exists()
        assert server.told["url"] in printed and TOKEN not in printed and TOKEN not in json.dumps(server.told) and "secret-words" not in printed


@pytest.mark.slow
def test_a_port_in_use_is_followed_by_the_next_and_said(runs_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Server(runs_dir, "--port", str(port)) as server:
            assert server.told["port"] > port and server.get("/api/v1/me")[0] == 200
            assert f"port {port} is in use; taking {server.told['port']}" in server.end()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["no such folder"], "there is no folder no such folder"),
        ([".", "--host", "999.1.1.1"], "no address '999.1.1.1'"),
        ([".", "--token-file", "no such file"], "cannot read the token"),
        ([".", "--port", "99999"], "'--port'"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(options, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert why in refused("dashboard", *options)


def test_a_short_token_is_refused(runs_dir, tmp_path):
    (tmp_path / "token").write_text("short")
    assert "must have 16 or more" in refused("dashboard", runs_dir, "--token-file", tmp_path / "token")


@pytest.mark.slow
def test_live_events_come_over_a_socket_within_a_second(tmp_path):
    run = MadeRun(tmp_path, "live", MadeValues(ranks=2, layers=1, total=100))
    run.rows(1, 3)
    with writer_lock(run.path), Server(tmp_path, "--port", "0") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.told["port"], timeout=DEADLINE_S)
        connection.request("GET", "/api/v1/runs/live/live?name=loss%2Ftotal&after=3")
        stream = connection.getresponse()
        assert stream.getheader("content-type").startswith("text/event-stream")
        assert any(b"event: overview" in stream.readline() for _ in range(4))
        delays = []
        for step in range(4, 8):
            time.sleep(0.4)
            run.rows(step, step, now=True)
            written = time.monotonic()
            while b'"step":[%d]' % step not in stream.readline():
                pass
            delays.append(time.monotonic() - written)
        assert min(delays) < 1.0, delays
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE_S) == 0  # though somebody watches


@pytest.mark.slow
def test_a_background_server_ends_when_its_folder_is_gone_or_nobody_needs_it(runs_dir, monkeypatch, tmp_path):
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "sitecustomize.py").write_text("import penstock.dashboard.serve as serve\nserve.UNSEEN_S, serve.LOOK_S = 0.5, 0.1\n")
    with Server(runs_dir, "--port", "0", "--background", PYTHONPATH=f"{tmp_path / 'quick'}:{os.environ.get('PYTHONPATH', '')}") as server:
        assert server.process.wait(DEADLINE_S) == 0
    assert not (runs_dir / ".dashboard.json").exists()


@pytest.mark.slow
def test_starting_runs_share_one_server_which_is_found_again(runs_dir, monkeypatch):
    monkeypatch.setenv("PENSTOCK_DASHBOARD_TOKEN", TOKEN)
    other = small_run(runs_dir, "other run~", steps=4, ranks=1, layers=1)
    links = []
    threads = [threading.Thread(target=lambda run=run: links.append(background.page_of(run, private=False))) for run in (runs_dir / "small", other.path)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    pid = json.loads((runs_dir / ".dashboard.json").read_text())["pid"]
    try:
        assert len(links) == 2 and len({link.partition("/r/")[0] for link in links}) == 1
        assert sorted(link.rpartition("/")[2] for link in links) == ["other%20run~0", "small"]
        private = background.page_of(other.path, private=True)
        assert private.endswith(f"#token={TOKEN}") and json.loads((runs_dir / ".dashboard.json").read_text())["pid"] == pid
    finally:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not (runs_dir / ".dashboard.json").exists(), "the server has not ended")


def test_word_of_a_server_that_is_gone_is_not_believed(runs_dir):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        word = {"host": "127.0.0.1", "port": listener.getsockname()[1], "token": TOKEN}
        gone = subprocess.Popen(["true"])
        gone.wait()
        for pid, machine in ((gone.pid, socket.gethostname()), (os.getpid(), "another-machine")):
            (runs_dir / ".dashboard.json").write_text(json.dumps(word | {"pid": pid, "machine": machine}))
            assert background._answering(runs_dir) is None
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()  # whoever took its port was not even asked
    (runs_dir / ".dashboard.json").write_text("[torn")
    assert background._answering(runs_dir) is None


@pytest.mark.slow
def test_training_brings_its_page_and_prints_the_link(tmp_path):
    sets = small_sets(tmp_path, metrics__dashboard=True, train__steps=300, eval__every=0, snapshot__every=0)
    done = penstock("train", *sets, "--run-dir", tmp_path / "runs" / "mine")
    word = tmp_path / "runs" / ".dashboard.json"
    until(word.exists, "no server was started")
    os.kill(json.loads(word.read_text())["pid"], signal.SIGTERM)
    if "page  " in done.stderr:  # else the run was quicker than the server
        assert "/r/mine" in done.stderr and "token=" not in done.stderr


def test_training_goes_on_where_no_server_can_be_started(tmp_path, monkeypatch, capsys):
    from penstock.engine.record import showing
    from penstock.store import Run

    monkeypatch.setattr(background, "_start", lambda runs_dir: 1 / 0)
    run = MadeRun(tmp_path, "run", MadeValues(ranks=1, layers=1, total=4))
    showing.show_page(Run(run.path))
    for thread in threading.enumerate():
        if thread.name == "penstock-page":
            thread.join(DEADLINE_S)
    assert "no page is served (division by zero)" in capsys.readouterr().err


@pytest.mark.slow
def test_training_loads_nothing_of_the_server():
    code = "import sys, penstock.engine; sys.exit(any(name in sys.modules for name in ('fastapi', 'starlette', 'uvicorn')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=DEADLINE_S).returncode == 0


def test_a_run_without_the_switch_starts_nothing(tmp_path, monkeypatch):
    from penstock.engine.record import showing
    from penstock.store import Run

    monkeypatch.setattr(showing, "page_of", lambda *_, **__: pytest.fail("a page was asked for"))
    run = MadeRun(tmp_path, "run", MadeValues(ranks=1, layers=1, total=4), sets=("metrics.dashboard=false",))
    showing.show_page(Run(run.path))
    assert not [thread for thread in threading.enumerate() if thread.name == "penstock-page"]
