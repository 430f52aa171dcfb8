"""`penstock metrics` as a user types it: queries, bounds, formats, exports, and what it says of bad input."""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from penstock.config import load_config
from penstock.monitor.series import Keeper, write_kinds
from penstock.store import create_run

sys.path.insert(0, str(Path(__file__).parents[1] / "monitor"))
from metric_runs import KINDS, NAMES, Ranks


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """A run of two ranks in `runs/mine`, 60 steps, a part of them stored."""
    monkeypatch.chdir(tmp_path)
    folder = create_run(load_config("tiny", []), Path("runs/mine"), {}).path / "metrics"
    write_kinds(folder, KINDS.all)
    ranks = Ranks(folder).steps(range(1, 41))
    with Keeper(folder, KINDS) as keeper:
        keeper.poll(0.0)
        keeper.store()
    return ranks.steps(range(41, 61))


def test_a_query_as_csv_and_as_json(ranks, here, answer):
    code, out, err = here("metrics", "mine", "--query", "grad_norm/*", "--since", "10s", "--csv")
    assert (code, err) == (0, "")
    _, *lines = out.splitlines()
    assert [line.split(",")[:2] for line in lines] == [["grad_norm/total", str(step)] for step in range(50, 61)]
    told = answer("metrics", "mine", "--query", "loss/*", "--query", "time/*", "--since", "30", "--until", "35")
    assert [metric["name"] for metric in told["metrics"]] == ["loss/total", "time/step"]
    assert told["metrics"][1]["step"] == list(range(30, 36))
    assert (told["metrics"][1]["unit"], told["metrics"][1]["high_rank"]) == ("s", [1] * 6)


def test_points_thin_and_names_list(ranks, here, answer):
    told = answer("metrics", "last", "--query", "optim/lr", "--points", "10")
    assert len(told["metrics"][0]["step"]) <= 10
    assert told["metrics"][0]["measured"] == 60
    told = answer("metrics", "mine", "--names")
    assert (told["step"], told["names"]) == (60, sorted(NAMES))
    code, out, _ = here("metrics", "mine")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]][-1] == ["time/step", "s", "60"]


def test_a_run_that_is_read_while_it_is_written_and_after_it_crashed(ranks, answer):
    assert answer("metrics", "mine", "--names")["step"] == 60
    ranks.steps([61])
    assert answer("metrics", "mine", "--names")["step"] == 61
    part = max(Path("runs/mine/metrics/rank-00001").glob("*.rows"))
    part.write_bytes(part.read_bytes()[:-5])
    ranks.steps([62], only=[0])
    told = answer("metrics", "mine", "--query", "time/step", "--since", "61")
    assert (told["metrics"][0]["step"], told["metrics"][0]["high_rank"]) == ([61, 62], [0, 0])


def test_damage_is_named_on_stderr_and_the_rest_read(ranks, here):
    part = min(Path("runs/mine/metrics/rank-00001").glob("*.rows"))
    data = bytearray(part.read_bytes())
    data[-200] ^= 255
    part.write_bytes(data)
    code, out, err = here("metrics", "mine", "--query", "time/step", "--csv")
    assert code == 0
    assert len(out.splitlines()) == 61
    assert str(part) in err
    assert "1 rows of ranks are missing" in err


def test_nothing_is_written_in_the_run(ranks, here):
    def state():
        return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in Path("runs/mine").rglob("*"))

    before = state()
    assert here("metrics", "mine", "--csv")[0] == 0
    assert here("metrics", "mine", "--openmetrics")[0] == 0
    assert state() == before
    shutil.copytree("runs/mine", "runs/copy")
    assert here("metrics", "copy", "--csv")[1] == here("metrics", "mine", "--csv")[1]


def test_bad_input_is_one_sentence_with_its_mend(ranks, refuses):
    assert "no metric matches 'gradnorm/total'" in (err := refuses("metrics", "mine", "--query", "gradnorm/total"))
    assert "grad_norm/total" in err
    assert "neither a step nor a time" in refuses("metrics", "mine", "--since", "soon")
    assert "which run?" in refuses("metrics")
    assert "no run 'mien'" in refuses("metrics", "mien")
    assert "--send carrier-pigeon is not known; there are wandb" in refuses("metrics", "mine", "--send", "carrier-pigeon")
    assert "holds no spans" in refuses("metrics", "mine", "--perfetto", "x.pftrace")
    create_run(load_config("tiny", []), Path("runs/new"), {})
    assert "holds no metrics" in refuses("metrics", "new")


def test_the_catalogue_says_what_is_bad(here, answer, ranks):
    code, out, _ = here("metrics", "--catalogue", "--query", "grad_norm/total")
    assert code == 0
    assert out.startswith("grad_norm/total  [") and "\n    bad: " in out
    assert len(answer("metrics", "--catalogue")["catalogue"]) > 50
    assert [kind["pattern"] for kind in answer("metrics", "mine", "--catalogue")["catalogue"]] == [kind.pattern for kind in KINDS.all]
    told = answer("metrics", "--grafana", "board.json")
    assert json.loads(Path(told["grafana"]).read_text())["panels"]


def test_events_and_traces_are_written(ranks, answer):
    Path("runs/mine/metrics/rank-00000/spans.json").write_text(json.dumps({"rank": 0, "spans": [["step", 1.0, 2.0]]}))
    assert answer("metrics", "mine", "--perfetto", "a.pftrace")["spans"] == 1
    assert Path("a.pftrace").stat().st_size > 40
    assert answer("metrics", "mine", "--tensorboard", "events", "--query", "loss/*")["steps"] == 60


@pytest.mark.slow
def test_a_scrape_sees_what_was_measured_since_the_last(ranks):
    command = [sys.executable, "-m", "penstock", "metrics", "mine", "--serve", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = next(word for word in server.stderr.readline().split() if word.startswith("http"))
            assert 'penstock_optim{run="mine",where="lr"} 0.06\n' in _get(url)
            ranks.steps([61])
            assert 'penstock_optim{run="mine",where="lr"} 0.061\n' in _get(url)
        finally:
            server.terminate()


def _get(url):
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
