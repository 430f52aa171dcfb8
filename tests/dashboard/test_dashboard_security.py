"""Who may ask what, by which name and from which page; limits; what browsers are told; actions and their commands."""

import json
import sys
import time

import pytest
from tests.dashboard.asking import TOKEN, client, with_token
from tests.dashboard.made_runs import small_run

from penstock.dashboard import access, actions
from penstock.store import read_history

READ = "/api/v1/runs"
ACT = "/api/v1/runs/small/actions"


@pytest.fixture
def runs_dir(tmp_path):
    small_run(tmp_path, steps=4, ranks=1, layers=1).snapshot(4)
    return tmp_path


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:8080", "127.0.0.53"])
def test_the_loopback_is_asked_by_its_names(runs_dir, host):
    with client(runs_dir) as browser:
        assert browser.get(READ, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1", "[::1].evil.example", "[evil"])
def test_another_name_for_this_machine_is_refused(runs_dir, host):
    with client(runs_dir) as browser:
        for path in (READ, "/", "/api/v1/openapi.json"):
            answer = browser.get(path, headers={"Host": host})
            assert answer.status_code == 403 and "name" in answer.json()["error"]


def test_a_name_that_the_owner_allows_is_answered(runs_dir):
    with client(runs_dir, allowed=("training.example",)) as browser:
        assert browser.get(READ, headers={"Host": "training.example"}).status_code == 200


def test_pages_of_other_sites_are_refused(runs_dir):
    with with_token(runs_dir) as browser:
        for origin in ("https://evil.example", "http://127.0.0.1:9999", "null", "http://localhost:8080"):
            assert browser.get(READ, headers={"Origin": origin}).status_code == 403
            assert browser.post(ACT, json={"kind": "snapshot", "dry": True}, headers={"Origin": origin}).status_code == 403
        assert browser.get(READ, headers={"Origin": "http://127.0.0.1:8080"}).status_code == 200


def test_away_from_the_loopback_looking_needs_the_token(runs_dir):
    with client(runs_dir, host="0.0.0.0", base_url="http://192.168.1.7:8080") as browser:
        for path in (READ, "/api/v1/me", "/api/v1/runs/small/overview", "/api/v1/runs/small/live", "/api/v1/openapi.json"):
            answer = browser.get(path)
            assert answer.status_code == 401 and "token" in answer.json()["error"]
        assert browser.get(READ, headers={"X-Penstock-Token": TOKEN}).status_code == 200
        assert browser.get(READ, headers={"X-Penstock-Token": TOKEN, "Host": "evil.example"}).status_code == 403
        assert browser.post("/api/v1/login", json={"token": TOKEN}).status_code == 200
        assert browser.get(READ).status_code == 200


def test_a_login_gives_a_strict_cookie_that_is_not_the_token(runs_dir):
    with client(runs_dir) as browser:
        assert browser.get("/api/v1/me").json()["may_act"] is False
        answer = browser.post("/api/v1/login", json={"token": TOKEN})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and TOKEN not in cookie
        assert browser.get("/api/v1/me").json()["may_act"] is True
    with client(runs_dir, cookies={access.COOKIE: access.Access("127.0.0.1", "another-token").cookie}) as browser:
        assert browser.get("/api/v1/me").json()["may_act"] is False


@pytest.mark.parametrize("way", ["login", "header"])
def test_tokens_cannot_be_guessed_quickly(runs_dir, way):
    with client(runs_dir) as browser:
        def guess(token):
            if way == "login":
                return browser.post("/api/v1/login", json={"token": token}).status_code
            return browser.get(READ, headers={"X-Penstock-Token": token}).status_code

        assert [guess(f"guess-{i}") for i in range(access.WRONG_A_MINUTE)] == [401] * access.WRONG_A_MINUTE
        assert guess("guess") == 429 and guess(TOKEN) == 429


def test_acting_needs_the_token_even_on_the_loopback(runs_dir):
    with client(runs_dir) as browser:
        assert browser.post(ACT, json={"kind": "snapshot", "dry": True}).status_code == 401
    with with_token(runs_dir) as browser:
        assert browser.post(ACT, json={"kind": "snapshot", "dry": True}).status_code == 200
        assert browser.post(ACT, json={"kind": "snapshot"}).status_code == 409
        assert browser.post(ACT.replace("small", "other"), json={"kind": "snapshot", "dry": True}).status_code == 404


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        ({"kind": "snapshot"}, "penstock snapshot RUN --wait 60"),
        ({"kind": "stop"}, "penstock stop RUN --wait 60"),
        ({"kind": "scale", "ranks": 3}, "penstock scale RUN --ranks 3 --wait 60"),
        ({"kind": "change", "settings": {"optim.lr": 0.001, "optim.clip": "2; rm -rf ~"}}, "penstock change RUN --set optim.lr=0.001 --set 'optim.clip=2; rm -rf ~' --wait 60"),
        ({"kind": "change", "settings": {"model.tied": True}, "accept_loss": True}, "penstock change RUN --set model.tied=true --yes --wait 60"),
        ({"kind": "fork", "step": 4}, "penstock runs fork RUN@4 --run-dir RUN-fork-4"),
        ({"kind": "fork", "snapshot": "abcd12", "name": "mine", "settings": {"optim.lr": 1}}, "penstock runs fork RUN@abcd12 --set optim.lr=1 --run-dir DIR/mine"),
        ({"kind": "acknowledge", "alert": "straggler-10"}, "penstock alerts RUN --ack straggler-10"),
        ({"kind": "silence", "alert_kind": "straggler", "hours": 2}, "penstock alerts RUN --silence straggler --hours 2"),
    ],
)  # fmt: skip
def test_an_action_tells_its_command_before_it_is_done(runs_dir, asked, command):
    with with_token(runs_dir) as browser:
        told = browser.post(ACT, json=asked | {"dry": True}).json()
        assert told["exit"] is None and told["command"] == command.replace("RUN", str(runs_dir / "small")).replace("DIR", str(runs_dir))
        assert [event.kind for event in read_history(runs_dir / "small").events] == ["start", "snapshot"]


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"kind": "shell"}, {"kind": "scale"}, {"kind": "scale", "ranks": 0}, {"kind": "change"}, {"kind": "fork"}, {"kind": "fork", "step": 1, "snapshot": "abcd"},
        {"kind": "change", "settings": {"--help": 1}}, {"kind": "change", "settings": {"optim.lr": "x\n"}}, {"kind": "change", "settings": {"optim.lr": "x" * 2000}},
        {"kind": "change", "settings": {"alerts.command": "touch /tmp/x"}}, {"kind": "fork", "step": 4, "settings": {"data.path": "/etc"}},
        {"kind": "fork", "step": 4, "name": "../x"}, {"kind": "fork", "step": 4, "name": "small"}, {"kind": "acknowledge", "alert": "--all"}, {"kind": "silence"},
        {"kind": "silence", "alert_kind": "straggler", "hours": -1}, {"kind": "snapshot", "more": 1}, {"kind": "fork", "step": -1}, [], "x", None,
    ],
)  # fmt: skip
def test_an_action_that_is_none_is_refused_in_a_sentence(runs_dir, asked):
    with with_token(runs_dir) as browser:
        answer = browser.post(ACT, json=asked if not isinstance(asked, dict) else asked | {"dry": True})
        assert answer.status_code in (403, 409, 422) and len(answer.json()["error"]) > 10


def test_actions_come_to_an_end_in_number(runs_dir):
    with with_token(runs_dir) as browser:
        found = [browser.post(ACT, json={"kind": "snapshot", "dry": True}).status_code for _ in range(access.ACTIONS_A_MINUTE + 1)]
        assert set(found[:-1]) == {200} and found[-1] == 429


@pytest.mark.slow
def test_an_action_runs_the_command_and_is_told_in_the_history(runs_dir):
    alert = small_run(runs_dir, "other", steps=4, ranks=1, layers=1).alert("straggler", 3)
    with with_token(runs_dir) as browser:
        told = browser.post(ACT.replace("small", "other"), json={"kind": "acknowledge", "alert": alert.id, "confirm": True}).json()
        assert told["exit"] == 0, told
        assert browser.get("/api/v1/runs/other/alerts").json()["alerts"][0]["state"] == "acknowledged"
        refused = browser.post(ACT.replace("small", "other"), json={"kind": "snapshot", "confirm": True}).json()
        assert refused["exit"] == 2 and "does not run" in refused["text"]
    notes = [event for event in read_history(runs_dir / "other").events if event.kind == "note"]
    assert [note.data["command"] for note in notes] == ["acknowledge", "snapshot"] and "exit code 2" in notes[1].text


@pytest.mark.slow
def test_a_command_that_does_not_end_is_ended_and_much_output_is_cut(runs_dir, monkeypatch):
    script = runs_dir / "slow"
    script.write_text("import time\nprint('x' * 100000, 'end', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    real = actions.subprocess.Popen
    python = sys.orig_argv[0] if sys.orig_argv else "python3"
    monkeypatch.setattr(actions.subprocess, "Popen", lambda command, **options: real([python, str(script)], **options))
    began = time.monotonic()
    code, text = actions._run(["snapshot"], 3.0)
    assert code != 0 and time.monotonic() - began < 20 and len(text) < actions.MOST_TEXT + 100 and "end\nended after 3 s" in text


def test_what_is_too_large_is_refused(runs_dir):
    with with_token(runs_dir) as browser:
        assert browser.get(READ + "?search=" + "x" * 20000).status_code == 414
        assert browser.post(ACT, content=b"x" * 70000).status_code == 413
        assert browser.post(ACT, content=(b"[" * 5000 for _ in range(20)), headers={"Content-Type": "application/json"}).status_code >= 400
        assert browser.post(ACT, content=b"[" * 30000, headers={"Content-Type": "application/json"}).status_code in (400, 422)
        assert browser.post(ACT, data={"kind": "snapshot"}).status_code == 422
        assert browser.put(READ).status_code == 405 and "error" in browser.put(READ).json()


def test_every_answer_keeps_the_browser_strict(runs_dir):
    with client(runs_dir, page=_page(runs_dir)) as browser:
        for path in (READ, "/", "/r/small/explore", "/assets/app.js", "/api/v1/no", "/api/v1/runs/no", "/assets/no.js"):
            headers = browser.get(path).headers
            assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer" and "server" not in headers
        assert browser.get(READ).headers["cache-control"] == "no-store"


def test_the_page_is_given_for_its_own_addresses_and_nothing_else(runs_dir):
    with client(runs_dir, page=_page(runs_dir)) as browser:
        for path in ("/", "/r/small/overview", "/compare", "/r/a%2Fb/history"):
            assert browser.get(path).text.startswith("<!doctype html>") and browser.get(path).headers["content-type"].startswith("text/html")
        script = browser.get("/assets/app.js")
        assert script.headers["content-type"].startswith("text/javascript") and "console" in script.text
        assert browser.get("/assets/app.js", headers={"If-None-Match": script.headers["etag"]}).status_code == 304
        for path in ("/assets/no.js", "/small/run.json", "/assets/..%2f..%2fsmall%2frun.json", "/%2e%2e/small/run.json", "/api/v1/no", "/favicon.ico"):
            answer = browser.get(path)
            assert answer.status_code == 404 and "error" in answer.json()


def test_without_a_built_page_the_reason_is_said(runs_dir):
    with client(runs_dir, page=runs_dir / "no page") as browser:
        assert browser.get("/").status_code == 503 and "make page" in browser.get("/").json()["error"]


def test_a_fault_of_ours_is_one_sentence(runs_dir, monkeypatch, capsys):
    monkeypatch.setattr("penstock.dashboard.routes.runs.run_facts", lambda *_: 1 / 0)
    with client(runs_dir, raises=False) as browser:
        answer = browser.get("/api/v1/runs/small")
    assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"] and "Traceback" in capsys.readouterr().err


def _page(folder):
    page = folder / "page"
    (page / "assets").mkdir(parents=True, exist_ok=True)
    (page / "index.html").write_text('<!doctype html>\n<html><head><script type="module" src="/assets/app.js"></script></head><body></body></html>')
    (page / "assets" / "app.js").write_text("console.log(1)")
    return page


def test_the_description_is_openapi(runs_dir):
    with client(runs_dir) as browser:
        told = browser.get("/api/v1/openapi.json").json()
    assert told["openapi"].startswith("3.") and "/api/v1/runs/{id}/series" in told["paths"] and json.dumps(told).count("Mistake") > 10
