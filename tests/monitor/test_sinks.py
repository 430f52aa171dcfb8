"""Sinks: a webhook, a mail server and a command are told; one that hangs, fails or floods holds up nobody."""

import json
import socket
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from penstock.config import AlertsSection
from penstock.monitor.alerts.alert import Alert
from penstock.monitor.detect import Moved
from penstock.monitor.sinks import Message, Worker, build_sinks
from penstock.monitor.sinks.command import CommandSink
from penstock.monitor.sinks.mail import Mail
from penstock.monitor.sinks.webhook import Webhook


def message(number=0):
    moved = (Moved("loss/total", 7, float("nan"), 2.0, 9.0, 1),)
    alert = Alert(f"a{number}", "straggler", "warning", "open", 9, 7, 1e9, 0.9, 1, None, "rank 1 is slow", "a cause", "an advice", moved)
    return Message("my-run", "opened", alert)


@contextmanager
def webhook_server(answers=(200,), port=0):
    """A server that answers POSTs so, the last answer again and again; yields its address and what came."""
    came, left = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook?a=b", came
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent_server():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def until(so, seconds=60.0):
    end = time.monotonic() + seconds
    while not so() and time.monotonic() < end:
        time.sleep(0.01)
    assert so()


def test_a_webhook_gets_the_alert_as_json_with_a_line_of_text():
    with webhook_server() as (url, came):
        Webhook(url)(message())
    [told] = came
    assert told["run"] == "my-run" and told["event"] == "opened" and "rank 1 is slow" in told["text"]
    assert told["alert"]["rank"] == 1 and told["alert"]["evidence"][0]["value"] == "nan"


@pytest.mark.parametrize("status", [302, 404, 500])
def test_an_answer_that_is_not_of_success_is_a_failure(status):
    with webhook_server([status]) as (url, _), pytest.raises(OSError, match=str(status)):
        Webhook(url)(message())


def test_a_webhook_that_fails_is_tried_again_and_then_told():
    said = []
    with webhook_server([500, 500, 200]) as (url, came):
        worker = Worker("hook", Webhook(url), said.append, first_wait_s=0.01)
        worker.put(message())
        until(lambda: worker.sent == 1)
        worker.close(5)
    assert len(came) == 3 and worker.left_out == 0 and len(said) == 1 and "500" in said[0]


def test_a_webhook_that_hangs_blocks_nobody_and_is_given_up():
    said = []
    with silent_server() as port:
        worker = Worker("hook", Webhook(f"http://127.0.0.1:{port}/", timeout_s=0.1), said.append, first_wait_s=0.01)
        began = time.monotonic()
        for number in range(200):
            worker.put(message(number))
        assert time.monotonic() - began < 5, "a message a tenth of a second would take 20"
        assert worker.left_out >= 200 - 64 - 1  # the queue is bounded
        worker.close(0.5)
        assert time.monotonic() - began < 10
    assert worker.sent == 0 and "not told" in said[0]


def test_mail_goes_to_a_server():
    letters = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=smtp_once, args=(server, letters), daemon=True)
        thread.start()
        Mail("me@example.org", f"127.0.0.1:{server.getsockname()[1]}", timeout_s=5)(message())
        thread.join(5)
    [letter] = letters
    assert "Subject: my-run: opened warning straggler at rank 1" in letter.replace("\r\n ", " ") and "an advice" in letter


def smtp_once(server, letters):
    """The least of an SMTP server, for one letter (RFC 5321)."""
    connection, _ = server.accept()
    with connection, connection.makefile("rwb") as file:
        def answer(text):
            file.write(text + b"\r\n")
            file.flush()

        answer(b"220 here")
        while line := file.readline():
            word = line[:4].upper()
            if word == b"DATA":
                answer(b"354 go on")
                lines = []
                while (line := file.readline()) != b".\r\n":
                    lines.append(line.decode())
                letters.append("".join(lines))
            answer(b"221 bye" if word == b"QUIT" else b"250 fine")
            if word == b"QUIT":
                return


def test_a_mail_server_that_hangs_is_a_failure_in_time():
    with silent_server() as port, pytest.raises(OSError, match="time"):
        Mail("me@example.org", f"127.0.0.1:{port}", timeout_s=0.1)(message())


def test_a_command_gets_the_alert_and_is_killed_when_it_hangs(tmp_path):
    CommandSink(f"{sys.executable} -c \"import sys; open('{tmp_path}/got', 'w').write(sys.stdin.read())\"")(message())
    assert json.loads((tmp_path / "got").read_text())["alert"]["id"] == "a0"
    with pytest.raises(OSError, match="killed"):
        CommandSink("sleep 60", timeout_s=0.1)(message())
    with pytest.raises(OSError, match="exit code 1"):
        CommandSink("false")(message())
    with pytest.raises(OSError):
        CommandSink("/no/such/command")(message())


def test_settings_make_the_sinks_that_they_ask_for(capfd):
    section = AlertsSection(webhook="http://a/x https://b/y", email="me@b.c", command="true")
    sinks = build_sinks(section, print)
    assert len(sinks.workers) == 5
    none = build_sinks(AlertsSection(), print)
    none.put(message())
    none.close(5)
    assert "WARNING straggler (rank 1)" in capfd.readouterr().err
