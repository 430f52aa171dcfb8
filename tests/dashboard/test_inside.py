"""The inside of the machine as the API tells it: ranks over time, a step as ranks ran it, the layout; of runs that lack it, and of damaged files."""

import base64

import numpy as np
import pytest
from tests.dashboard.asking import client, thawed
from tests.dashboard.made_runs import MadeRun, small_run
from tests.dashboard.made_values import Faults, MadeValues

from penstock.dashboard import frozen
from penstock.dashboard.inside import ranks as ranks_module
from penstock.store import Run


@pytest.fixture
def runs_dir(tmp_path):
    run = MadeRun(tmp_path, "piped", MadeValues(ranks=4, layers=2, total=60, faults=Faults(straggler=(30, 3))))
    run.lie(pipeline=2, replicate=2, node=2)
    run.start()
    run.rows(1, 60)
    run.watch()
    run.shots((32, 60), stages=2, micros=4, slow=3)
    return tmp_path


def told(runs_dir, path, run="piped", status=200):
    with client(runs_dir) as browser:
        answer = browser.get(f"/api/v1/runs/{run}/inside/{path}")
    assert answer.status_code == status, answer.text
    return answer.json()


def grid(answer):
    """Mean, maximum, and whether there is any [rows, buckets]."""
    shape = -1, len(answer["buckets"])
    return [np.frombuffer(base64.b64decode(answer[name]), kind).reshape(shape) for name, kind in (("mean", "<f4"), ("most", "<f4"), ("there", "u1"))]


def test_a_slow_rank_stands_out_of_the_ranks_over_time(runs_dir):
    answer = told(runs_dir, "ranks")
    mean, most, there = grid(answer)
    assert (answer["name"], answer["unit"], answer["source"], answer["ranks"], answer["through"]) == ("time/own", "s", "monitor", 4, 60)
    assert mean.shape == (4, 60) and there.all() and answer["buckets"][-1] == [60, 60] and (mean == most).all()
    assert mean[3, 30:].mean() > 1.8 * mean[2, 30:].mean() and mean[3, :29].mean() < 1.2 * mean[2, :29].mean()
    answer = told(runs_dir, "ranks?name=memory/resident")
    assert answer["unit"] == "bytes" and 2e9 < grid(answer)[0].mean() < 3e9


def test_a_metric_that_no_rank_kept_is_refused_with_those_there_are(runs_dir):
    assert "time/own" in told(runs_dir, "ranks?name=loss/total", status=404)["error"]
    assert told(runs_dir, "ranks", run="no", status=404)["error"]


def test_many_ranks_share_rows_which_show_the_highest(runs_dir, monkeypatch):
    whole = grid(told(runs_dir, "ranks"))
    monkeypatch.setattr(ranks_module, "MOST_ROWS", 3)
    answer = told(runs_dir, "ranks")
    mean, most, there = grid(answer)
    assert answer["per_row"] == 2 and answer["ranks"] == 4 and mean.shape == (2, 60) and there.all()
    assert (mean[1] == whole[0][2:].max(0)).all() and (most[1] == whole[1][2:].max(0)).all()


def test_without_a_monitor_the_logs_tell_and_without_logs_the_reason(tmp_path, monkeypatch):
    run = small_run(tmp_path, steps=12)
    answer = told(tmp_path, "ranks", run="small")
    assert answer["source"] == "logs" and grid(answer)[0].shape == (2, 12)
    monkeypatch.setattr(ranks_module, "MOST_LOG_BYTES", 100)
    answer = told(tmp_path, "ranks", run="small")
    assert answer["source"] == "none" and answer["names"] == [] and "more than are read" in answer["damage"][0]
    run.keep()
    assert told(tmp_path, "layout", run="small")["own"] == []


def test_a_damaged_grid_is_named_and_the_logs_tell(runs_dir):
    file = runs_dir / "piped" / "metrics" / "ranks.grid"
    file.write_bytes(file.read_bytes()[:-5])
    answer = told(runs_dir, "ranks")
    assert answer["source"] == "logs" and "ranks.grid is damaged" in answer["damage"][0] and grid(answer)[0].shape == (4, 60)


def test_a_step_is_told_as_ranks_ran_it_beside_its_plan(runs_dir):
    answer = told(runs_dir, "pipeline")
    assert answer["step"] == 60 and answer["steps"] == [{"step": 32, "ranks": 4}, {"step": 60, "ranks": 4}]
    assert [row["rank"] for row in answer["rows"]] == [0, 1, 2, 3] and answer["rows"][3]["host"] == "node1"
    names = [name for name, _, _ in answer["rows"][0]["spans"]]
    assert "forward_backward" in names and [name for name in names if name.startswith("pipeline.0F")] == [f"pipeline.0F{micro}" for micro in range(4)]
    assert all(start >= answer["start"] for row in answer["rows"] for _, start, _ in row["spans"])
    plan = answer["plan"]
    assert (plan["kind"], plan["micro_batches"], [stage["rank"] for stage in plan["stages"]], len(plan["rows"])) == ("1f1b", 4, [0, 1], 2)
    assert told(runs_dir, "pipeline?step=32")["step"] == 32
    assert [row["rank"] for row in told(runs_dir, "pipeline?first=2")["rows"]] == [2, 3]


def test_what_a_folder_holds_instead_of_steps_is_left_out(runs_dir):
    metrics = runs_dir / "piped" / "metrics"
    for rank, text in enumerate(["{torn", "[]", '{"steps": [{"step": 60}, 7, {"step": 60, "start": "nan", "end": 1, "spans": []}]}']):
        (metrics / f"rank-{rank:05d}" / "steps.json").write_text(text)
    for text in ('{"rank_of": [Infinity], "parts": []}', "[1]", '{"rank_of": [0], "parts": 5}', "{"):
        (metrics / "pipeline.json").write_text(text)
        answer = told(runs_dir, "pipeline")
        assert answer["plan"] is None and [row["rank"] for row in answer["rows"]] == [3] and len(answer["damage"]) == 2


def test_a_run_without_steps_is_empty(tmp_path):
    small_run(tmp_path, steps=4)
    answer = told(tmp_path, "pipeline", run="small")
    assert (answer["step"], answer["rows"], answer["steps"], answer["plan"]) == (None, [], [], None)


def test_the_layout_says_where_ranks_lie_what_they_hold_and_how_long_they_work(runs_dir):
    answer = told(runs_dir, "layout")
    assert [(axis["name"], axis["size"]) for axis in answer["axes"]] == [("pipeline", 2), ("node", 2)]
    assert answer["ranks"] == 4 and answer["hosts"] == ["node0", "node0", "node1", "node1"] and answer["step"] == 60
    assert answer["own"][3] > 1.8 * answer["own"][2]
    assert [(stage["first"], stage["last"], stage["head"]) for stage in answer["stages"]] == [(0, 2, False), (3, 5, True)]


def test_a_layout_that_does_not_multiply_is_a_row_of_ranks(tmp_path):
    run = MadeRun(tmp_path, "odd", MadeValues(ranks=3, layers=1, total=5))
    run.lie(pipeline=2)
    run.start()
    run.rows(1, 5)
    answer = told(tmp_path, "layout", run="odd")
    assert [(axis["name"], axis["size"]) for axis in answer["axes"]] == [("rank", 3)]
    assert told(_nothing(tmp_path), "layout", run="nothing")["ranks"] == 0


def test_a_frozen_page_has_the_inside(runs_dir, tmp_path):
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><html><head></head><body></body></html>")
    frozen.freeze(Run(runs_dir / "piped"), tmp_path / "out.html", page)
    answers, _ = thawed((tmp_path / "out.html").read_text())
    here = "/api/v1/runs/piped/inside"
    assert answers[f"{here}/ranks?name=wait%2Ftotal"]["name"] == "wait/total" and answers[f"{here}/layout"]["ranks"] == 4
    assert answers[f"{here}/pipeline"]["step"] == 60


def _nothing(runs_dir):
    (runs_dir / "nothing").mkdir()
    (runs_dir / "nothing" / "run.json").write_text("{}")
    return runs_dir
