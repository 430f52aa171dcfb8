"""`penstock schedule` as a user types it: figures, comparisons, files out and in, and one sentence for what cannot be done."""

import json
import xml.etree.ElementTree as xml
from functools import partial

import pytest

from penstock.parallel.pipeline.kinds import named_schedule
from penstock.parallel.pipeline.schedule import Costs
from penstock.parallel.pipeline.simulate import simulate
from penstock.parallel.pipeline.timeline import timeline_of
from penstock.parallel.pipeline.torch_ir import read_csv
from penstock.parallel.pipeline.trace import read_trace, write_trace

REAL = "1,1.2,0.8,0.05"


@pytest.fixture
def here(here):
    """Run `penstock schedule` with arguments; returns exit code, stdout and stderr."""
    return partial(here, "schedule")


@pytest.fixture
def refuses(refuses):
    """Run it with arguments that must be refused, in one line; returns that."""

    def run(*arguments):
        err = refuses(*arguments)
        assert len(err.strip().splitlines()) == 1, err
        return err

    return run


def test_a_named_kind_has_its_known_figures(answer):
    found = answer("--stages", 8, "--micro-batches", 16, "--kind", "zb-v", "--costs", REAL)
    assert found["bubble"] == pytest.approx(0.109, abs=6e-4) and found["steady_bubble"] == pytest.approx(0.091, abs=6e-4)
    assert (found["kind"], found["chunks"], found["peak_activations"]) == ("zb-v", 2, 8)
    assert found["bubble"] == pytest.approx(1 - 48 / found["makespan"])
    assert found["lower_bound"] <= found["makespan"] and found["seconds"] >= 0


def test_without_a_barrier_the_period_counts(answer):
    found = answer("--stages", 8, "--micro-batches", 16, "--kind", "zb-v", "--no-barrier")
    assert found["bubble"] == pytest.approx(0.0) and found["lower_bound"] == pytest.approx(found["period"]) == pytest.approx(48)
    assert found["makespan"] == pytest.approx(51.5)


def test_people_read_the_same_figures(here):
    code, out, _ = here("--stages", 8, "--micro-batches", 16, "--kind", "1f1b", "--costs", REAL)
    assert code == 0 and "1f1b: 8 ranks × 1 chunk, 16 micro-batches" in out and "bubble       32.4%" in out and "71" in out


def test_files_hold_the_schedule(answer, tmp_path):
    files = {name: tmp_path / f"out.{name}" for name in ("svg", "trace", "csv")}
    found = answer("--stages", 4, "--micro-batches", 8, "--kind", "zb-h1", "--costs", REAL, *(x for name, path in files.items() for x in (f"--{name}", path)))
    wanted = named_schedule("zb-h1", 4, 8)
    assert read_csv(files["csv"]).actions == wanted.actions
    timeline = read_trace(files["trace"])
    assert timeline.schedule == wanted and timeline.bubble == pytest.approx(found["bubble"])
    assert "zb-h1: 4 ranks" in " ".join(xml.parse(files["svg"]).getroot().itertext())
    loaded = answer("--load", files["csv"], "--costs", REAL)
    assert loaded["makespan"] == pytest.approx(found["makespan"]) and loaded["kind"] == "loaded"


def test_costs_of_every_stage_count(answer, refuses, tmp_path):
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"forward": [1, 1, 2, 1], "input_grad": [1, 1, 2, 1], "weight_grad": [1, 1, 2, 1]}))
    found = answer("--stages", 4, "--micro-batches", 8, "--kind", "1f1b", "--per-stage-costs", file)
    assert found["makespan"] >= 8 * 6
    assert "costs are given for 4 stages, and this schedule has 8" in refuses("--stages", 4, "--micro-batches", 8, "--kind", "zb-v", "--per-stage-costs", file)
    file.write_text(json.dumps({"forward": [1, 1], "input_grad": [1], "weight_grad": [1, 1]}))
    assert "input_grad 1 times for 2 stages" in refuses("--stages", 2, "--micro-batches", 8, "--per-stage-costs", file)
    file.write_text(json.dumps({"forward": [1, -1], "input_grad": [1, 1], "weight_grad": [1, 1]}))
    assert "has -1, which is no time" in refuses("--stages", 2, "--micro-batches", 8, "--per-stage-costs", file)


BAD = {
    ("--stages", 4): "give --micro-batches",
    ("--stages", 0, "--micro-batches", 4): "give --stages",
    ("--stages", 4, "--micro-batches", -8): "--micro-batches is -8; give it 1 or more",
    ("--stages", 4, "--micro-batches", 8, "--kind", "zbv"): "did you mean 'zb-v'?",
    ("--stages", 8, "--micro-batches", 12, "--kind", "dualpipe-v"): "takes 16 micro-batches or more, not 12",
    ("--stages", 4, "--micro-batches", 8, "--kind", "1f1b", "--chunks", 2): "takes 1 chunk a rank, not 2",
    ("--stages", 4, "--micro-batches", 8, "--kind", "1f1b", "--memory", 0.5): "rank 0 holds 4 units at 0F3, and the cap of 0.5 × 1F1B's allows 2; raise it to 1",
    ("--stages", 4, "--micro-batches", 8, "--memory", -1): "--memory -1.0 is no cap",
    ("--stages", 4, "--micro-batches", 8, "--memory", "nan"): "is no cap",
    ("--stages", 4, "--micro-batches", 8, "--costs", "1,x,2"): "is not numbers",
    ("--stages", 4, "--micro-batches", 8, "--costs", "1,2"): "has 2 numbers",
    ("--stages", 4, "--micro-batches", 8, "--costs", "1,inf,2"): "has inf, which is no time",
    ("--stages", 4, "--micro-batches", 8, "--costs", "0,0,0,1"): "takes no time at all",
    ("--from", "none.json"): "cannot read the trace none.json",
    ("--load", "none.csv"): "cannot read the schedule none.csv",
    ("--load", "none.csv", "--stages", 4): "--load tells --stages by itself",
    ("--from", "none.json", "--costs", "1,1,1"): "--from tells --costs by itself",
}


@pytest.mark.parametrize("arguments", BAD, ids=lambda words: " ".join(map(str, words)))
def test_what_cannot_be_is_refused_in_one_sentence(refuses, arguments):
    assert BAD[arguments] in refuses(*arguments)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0F0,0B0\n1F0\n", "rank 1: 1B0 (or 1I0 and 1W0) is missing"),
        ("0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n", "0B0 needs 1B0, which rank 1 does after 1F1; 1F1 needs 0F1, which rank 0 does after 0B0"),
    ],
)
def test_a_csv_with_a_missing_or_circular_action_is_refused(refuses, tmp_path, text, told):
    (tmp_path / "mine.csv").write_text(text)
    err = refuses("--load", tmp_path / "mine.csv")
    assert told in err and "mine.csv" in err


@pytest.mark.slow
def test_the_best_is_no_worse_than_any_kind_and_the_table_shows_all(answer, here):
    size = ("--stages", 4, "--micro-batches", 8, "--costs", REAL)
    found = answer(*size, "--kind", "all")
    fitting = [row for row in found["kinds"] if row["peak_activations"] <= 4 + 1e-9]
    auto = answer(*size)
    assert auto["bubble"] <= min(row["bubble"] for row in fitting) + 1e-9
    assert auto["peak_activations"] <= 4 + 1e-9 and auto["lower_bound"] <= auto["makespan"] + 1e-9
    _, out, _ = here(*size, "--kind", "all")
    assert {line.split()[0] for line in out.splitlines()} >= {"kind", "1f1b", "zb-v", "dualpipe-v"}


def test_a_cap_below_what_any_schedule_needs_is_refused_with_the_least(refuses):
    assert "0.25" in refuses("--stages", 4, "--micro-batches", 8, "--memory", 0.1)


@pytest.mark.slow
def test_a_timeline_tells_what_it_should_have_been(answer, here, tmp_path):
    schedule = named_schedule("1f1b", 4, 8)
    costs = Costs((1.0, 1.1, 0.9, 1.3), (1.0,) * 4, (1.0,) * 4, (0.1,) * 3, (1.0,) * 4)
    executed = timeline_of(schedule, simulate(schedule, costs))
    write_trace(executed, tmp_path / "trace.json")
    found = answer("--from", tmp_path / "trace.json", "--svg", tmp_path / "both.svg")
    assert found["executed"]["bubble"] == pytest.approx(executed.bubble) and found["executed"]["kind"] == "1f1b"
    assert found["costs"]["forward"] == pytest.approx(costs.forward) and found["costs"]["transfer"] == pytest.approx(costs.transfer)
    assert found["bubble"] < executed.bubble
    drawn = " ".join(xml.parse(tmp_path / "both.svg").getroot().itertext())
    assert "1f1b: 4 ranks" in drawn and f"bubble {found['bubble']:.1%}" in drawn
    code, out, _ = here("--from", tmp_path / "trace.json")
    assert code == 0 and "executed 1f1b" in out and "should have been" in out
