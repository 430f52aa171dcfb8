"""The list of runs and what is told of each: whole, damaged, being made, many, with names that are scripts."""

import json
import os
import time

import pytest
from tests.dashboard.asking import client
from tests.dashboard.made_runs import MadeRun, small_run
from tests.dashboard.made_values import MadeValues

from penstock.config import Config
from penstock.monitor.store import MetricStore
from penstock.store import writer_lock

SCRIPT = "<script>alert(1)<script>"


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    """A folder with a run that finished and one with a name that is a script, and was forked from it."""
    folder = tmp_path_factory.mktemp("runs")
    first = small_run(folder, "first", began=1.7e9)
    first.snapshot(40)
    first.alert("straggler", 10, rank=1)
    first.alert("hang", 12, state="resolved")
    origin = {"run": str(first.path), "step": 20, "snapshot": "ab" * 32}
    fork = small_run(folder, SCRIPT, began=1.7e9 + 100, sets=("optim.lr=0.5",), forked_from=origin)
    first.event("fork", f"forked to {fork.path}", 20, snapshot="ab" * 32, to=str(fork.path))
    return folder


@pytest.fixture(scope="module")
def browser(runs_dir):
    with client(runs_dir) as asking:
        yield asking


def get(browser, path, status=200, **query):
    answer = browser.get(f"/api/v1{path}", params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_runs_are_listed_newest_first_with_what_they_came_to(browser):
    told = get(browser, "/runs")
    assert told["total"] == 2 and [run["name"] for run in told["runs"]] == [SCRIPT, "first"]
    row = told["runs"][1]
    assert row["state"] == "finished" and row["step"] == row["steps"] == 40 and row["ranks"] == 2 and row["created"] == 1.7e9
    assert row["tokens"] == 40 * 64 * 512 and row["loss"] > 0 and row["val_loss"] > 0 and row["alerts"] == {"critical": 0, "warning": 1, "notice": 0}


def test_runs_are_searched_and_paged(browser):
    assert [run["name"] for run in get(browser, "/runs", search="FIRST finished")["runs"]] == ["first"]
    assert get(browser, "/runs", search="nothing") == {"total": 0, "runs": []}
    assert [run["name"] for run in get(browser, "/runs", limit=1, offset=1)["runs"]] == ["first"]
    assert get(browser, "/runs", 422, limit=0)["error"].startswith("query.limit")


def test_facts_history_and_alerts_of_a_run(browser):
    facts = get(browser, "/runs/first")
    assert facts["settings"]["model"]["layers"] == 12 and facts["identity"]["command"].startswith("penstock train")
    assert facts["layout"]["axes"]["replicate"] == 2 and facts["layout"]["ranks"] == 2 and "<b>" in facts["samples"][-1]["text"]
    assert facts["defaults"]["model.layers"] == Config().model.layers and "optim.lr" not in facts["defaults"]
    assert get(browser, f"/runs/{SCRIPT}")["defaults"]["optim.lr"] == Config().optim.lr
    assert facts["evals"][-1]["step"] == 40 and facts["evals"][-1]["val_loss"] == facts["row"]["val_loss"]
    story = get(browser, "/runs/first/history")
    assert [event["kind"] for event in story["events"]] == ["start", "snapshot", "fork"] and story["damage"] == []
    assert story["snapshots"][0]["step"] == 40 and story["parent"] is None
    assert [(child["name"], child["step"]) for child in story["children"]] == [(SCRIPT, 20)]
    assert get(browser, "/runs/first/alerts")["alerts"][0]["kind"] == "hang"


def test_what_a_run_chose_by_itself_stands_among_its_events_in_the_order_of_time(tmp_path):
    run = small_run(tmp_path, "own", began=1.7e9)
    run.event("change", "optim.lr 0.1 → 0.2", 20)
    text = "rank 1 on host b is 2.0 times slower than the median"
    for row in ({"step": 10, "what": "balance", "text": text, "time": time.time() + 60}, {"step": 11, "what": "snapshot", "text": "told already"}):
        MetricStore(run.metrics).append("event", row)
    with client(tmp_path) as asking:
        events = [(event["kind"], event["step"], event["text"]) for event in get(asking, "/runs/own/history")["events"]]
        shown = [(event["kind"], event["step"], event["text"]) for event in get(asking, "/runs/own/overview")["events"]]
    assert events == [("start", 0, events[0][2]), ("change", 20, "optim.lr 0.1 → 0.2"), ("balance", 10, text)] and shown == events[::-1]


def test_a_script_as_a_name_stays_text_and_leads_to_its_run(browser):
    [row] = [run for run in get(browser, "/runs")["runs"] if run["name"] == SCRIPT]
    answer = browser.get("/api/v1/runs/" + "".join(f"%{byte:02X}" for byte in row["id"].encode()))
    assert answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["row"]["name"] == SCRIPT
    assert get(browser, f"/runs/{row['id']}/history")["parent"] == {"run": "first", "name": "first", "step": 20}


def test_runs_are_compared_by_what_differs(browser):
    told = get(browser, "/compare", run=["first", SCRIPT])
    assert {"key": "optim.lr", "values": [0.001, 0.5]} in told["settings"] and "model.layers" not in [one["key"] for one in told["settings"]]
    assert {one["name"]: one["better"] for one in told["results"]}["validation loss"] == "low" and told["code"]["same"]


def test_two_snapshots_are_told_apart_by_settings_code_and_tensors(tmp_path):
    run = small_run(tmp_path, "run")
    code = {"penstock": {"commit": "ab" * 20, "branch": "main", "diff": None}}
    run.snapshot(20, config={"optim": {"lr": 0.1, "clip": 1.0}}, code=code)
    run.snapshot(40, config={"optim": {"lr": 0.2, "clip": 1.0}}, code=code | {"own": {"commit": "cd" * 20}})
    with client(tmp_path) as browser:
        first, last = [one["id"] for one in get(browser, "/runs/run/history")["snapshots"]]
        told = get(browser, "/runs/run/diff", before=first, after=last[:12])
        [config] = [part for part in told["parts"] if part["part"] == "config"]
        assert config == {"part": "config", "count": 1, "values": [{"key": "optim.lr", "values": [0.1, 0.2]}]}
        assert [(one["name"], one["same"]) for one in told["code"]] == [("own", False), ("penstock", True)]
        assert told["tensors"]["differ"] == {"count": 1, "names": ["w"]} and told["tensors"]["equal"]["count"] == 0 and not told["same_state"]
        assert get(browser, "/runs/run/diff", before=last, after=last)["same_state"]
        assert "penstock runs log" in get(browser, "/runs/run/diff", 404, before="00" * 32, after=last)["error"]
        assert get(browser, "/runs/run/diff", 404, before=last[:12] + "0" * 52, after=last)["error"]
        get(browser, "/runs/run/diff", 422, before="../run.json", after=last)
        [file] = (run.path / "snapshots").glob(f"*{last[:12]}.json")
        file.write_text("{torn")
        assert "damaged" in get(browser, "/runs/run/diff", 409, before=first, after=last)["error"]


@pytest.mark.parametrize("id", ["%2E%2E", "..%2F..", "%2e%2e", "..%2f..%2fetc", "/etc", "%2Fetc%2Fpasswd", "~1etc", "first~1..~1first", "no such", "\x00", "x" * 5000])
def test_an_address_leads_to_no_folder_but_a_listed_run(browser, id):
    for rest in ("", "/overview", "/history", "/series?name=loss%2Ftotal"):
        assert browser.get(f"/api/v1/runs/{id.replace(chr(0), '%00')}{rest}").status_code in (404, 422)


def test_links_out_of_the_folder_are_no_runs(tmp_path):
    small_run(tmp_path / "elsewhere", "secret")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere" / "secret")
    with client(tmp_path / "runs") as browser:
        assert get(browser, "/runs")["total"] == 0
        get(browser, "/runs/linked", 404)


def test_a_name_that_is_no_text_hides_no_other_run(tmp_path):
    small_run(tmp_path, "whole", steps=3, ranks=1, layers=1)
    os.rename(os.fsencode(small_run(tmp_path, "odd", steps=3, ranks=1, layers=1).path), os.fsencode(tmp_path) + b"/odd\xff")
    with client(tmp_path) as browser:
        assert sorted(row["name"] for row in get(browser, "/runs")["runs"]) == ["odd?", "whole"]


def test_runs_one_folder_deeper_are_found(tmp_path):
    small_run(tmp_path / "sweep~1", "a/b".replace("/", "~"))
    with client(tmp_path) as browser:
        [row] = get(browser, "/runs")["runs"]
        assert row["id"] == "sweep~01~1a~0b" and get(browser, f"/runs/{row['id']}")["row"]["name"] == "a~b"


def test_an_empty_folder_and_one_that_is_gone_have_no_runs(tmp_path):
    (tmp_path / "runs").mkdir()
    with client(tmp_path / "runs") as browser:
        assert get(browser, "/runs") == {"total": 0, "runs": []}
        (tmp_path / "runs").rmdir()
        time.sleep(0.6)
        assert get(browser, "/runs") == {"total": 0, "runs": []}


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [("run.json", "{torn", "run.json is damaged"), ("run.json", "[]", "run.json is damaged"), ("run.json", None, "run.json is missing"), ("summary.json", "\x00\xff", "summary.json is damaged")],
)
def test_a_damaged_run_is_a_row_that_says_why(tmp_path, file, content, why):
    small_run(tmp_path, "whole")
    broken = small_run(tmp_path, "broken").path / file
    broken.unlink()
    if content is not None:
        broken.write_bytes(content.encode("latin-1"))
    with client(tmp_path) as browser:
        rows = {run["name"]: run for run in get(browser, "/runs")["runs"]}
        assert rows["whole"]["error"] is None
        assert rows["broken"]["state"] == "damaged" and why in rows["broken"]["error"]
        get(browser, "/compare", 409, run=["whole", "broken"])


@pytest.mark.parametrize("file", ["config.toml", "history.jsonl", "alerts.jsonl", "metrics/catalogue.json", "metrics/train.jsonl", "metrics/rank-00001/g00000001-0000.rows"])
def test_other_damage_leaves_a_run_to_be_looked_at(tmp_path, file):
    run = small_run(tmp_path)
    (run.path / file).write_bytes(bytes(range(256)) * 9)
    with client(tmp_path) as browser:
        assert get(browser, "/runs")["total"] == 1
        for rest in ("", "/overview", "/metrics", "/history", "/alerts"):
            answer = browser.get(f"/api/v1/runs/small{rest}")
            assert answer.status_code in (200, 409) and (answer.status_code == 200 or "damaged" in answer.json()["error"])
        assert browser.get("/api/v1/runs/small/series?name=loss%2Ftotal").status_code == 200


def test_a_run_that_is_being_made_and_one_that_has_no_row_yet(tmp_path):
    run = MadeRun(tmp_path, "new", MadeValues(ranks=2, layers=2, total=10))
    (tmp_path / "folder").mkdir()
    with client(tmp_path) as browser, writer_lock(run.path):
        [row] = get(browser, "/runs")["runs"]
        assert (row["state"], row["step"], row["loss"]) == ("running", 0, None)
        assert get(browser, "/runs/new/overview")["health"] == "no steps yet"
        assert get(browser, "/runs/new/metrics") == {"metrics": []}


def test_rows_follow_the_files(tmp_path):
    run = MadeRun(tmp_path, "live", MadeValues(ranks=1, layers=1, total=100))
    with client(tmp_path) as browser:
        with writer_lock(run.path):
            run.rows(1, 3)
            assert (get(browser, "/runs")["runs"][0]["state"], get(browser, "/runs")["runs"][0]["step"]) == ("running", 3)
            run.rows(4, 7)
            assert get(browser, "/runs")["runs"][0]["step"] == 7
        run.event("failure", "it ended", 7)
        assert get(browser, "/runs")["runs"][0]["state"] == "failed"


@pytest.mark.slow
def test_a_thousand_runs_are_listed_in_a_second(tmp_path):
    first = small_run(tmp_path, "run-0000", steps=3, ranks=1, layers=1)
    files = {name: (first.path / name).read_bytes() for name in ("run.json", "config.toml", "summary.json", "history.jsonl", "metrics/train.jsonl", "metrics/eval.jsonl")}
    for i in range(1, 1000):
        folder = tmp_path / f"run-{i:04}"
        (folder / "metrics").mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    with client(tmp_path) as browser:
        began = time.process_time()
        assert get(browser, "/runs")["total"] == 1000
        assert time.process_time() - began < 2.0  # where nothing else runs, below one
        began = time.process_time()
        assert len(get(browser, "/runs", limit=100)["runs"]) == 100
        assert time.process_time() - began < 0.5


def test_numbers_that_are_none_are_words(tmp_path):
    run = small_run(tmp_path)
    (run.metrics / "train.jsonl").write_text(json.dumps({"step": 40, "loss": float("nan"), "tokens_per_s": float("inf")}) + "\n")
    (run.path / "summary.json").unlink()
    with client(tmp_path) as browser:
        answer = browser.get("/api/v1/runs")
        [row] = json.loads(answer.text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["runs"]
        assert (row["loss"], row["tokens_per_s"]) == ("nan", "inf")
