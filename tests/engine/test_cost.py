"""What a run costs: hours of devices always, money where a price is given, the same on the page, in the terminal and in the metrics."""

import io
import json

import pytest
from rich.console import Console
from small_runs import penstock, small_config, small_sets
from tests.dashboard.made_runs import MadeRun
from tests.dashboard.made_values import MadeValues

from penstock.config import ConfigError, load_config
from penstock.dashboard.standing import Standing
from penstock.engine.starting.start import resume_run, start_run
from penstock.monitor.overview import overview
from penstock.monitor.screen import frame
from penstock.monitor.series import Kinds, Series
from penstock.monitor.series.catalogue import CATALOGUE
from penstock.store import Run


def measured(folder, *names):
    courses = {course.name: course.value for course in Series(folder / "metrics", Kinds(CATALOGUE)).courses(names)}
    return [courses[name].tolist() for name in names]


def screen(now):
    out = io.StringIO()
    Console(file=out, width=200).print(frame(now, 200))
    return out.getvalue()


@pytest.mark.slow
def test_two_ranks_cost_twice_their_hours_times_the_price(tmp_path):
    sets = small_sets(tmp_path, run__name="paid", run__dir=tmp_path, cost__per_device_hour=3600, cost__currency="EUR")
    done = penstock("train", *sets, "--nproc", 2, "--json")
    told = json.loads(done.stdout)
    assert told["cost"]["money"] == pytest.approx(2 * told["wall_s"], rel=0.02) and told["cost"]["currency"] == "EUR"
    hours, money = measured(tmp_path / "paid", "cost/device_hours", "cost/money")
    assert money == pytest.approx([3600 * one for one in hours]) and hours == sorted(hours) and hours[0] > 0
    now = overview(tmp_path / "paid", "finished", 6)
    assert now.cost.money == told["cost"]["money"] >= money[-1] and now.cost.money_at_end is None and f"cost {now.cost.money:.2f} EUR" in screen(now)
    page = Standing(Run(tmp_path / "paid")).as_dict()
    assert page["cost"]["money"] == now.cost.money and page["tokens_per_s"] == told["tokens_per_s"] and page["mfu"] == told["mfu"]
    assert page["validation"] == {"step": 6, "loss": told["val_loss"], "lowest": min(one["val_loss"] for one in told["evals"])}


@pytest.mark.slow
def test_without_a_price_no_money_is_told_and_hours_go_on_over_a_resume(tmp_path):
    run = Run(tmp_path / "free")
    told = start_run(small_config(tmp_path), "test", "test", 1, run.path, None)
    assert list(told["cost"]) == ["device_hours"] and "cost/money" not in Series(run.path / "metrics", Kinds()).names()
    now = overview(run.path, "finished", 6)
    assert now.cost.money is None and now.cost.device_hours > 0 and "cost" not in screen(now)
    again = resume_run(run, {"train.steps": 9, "cost.per_device_hour": 3.6e6}, 1, None)
    hours, money = measured(run.path, "cost/device_hours", "cost/money")
    assert hours == sorted(hours) and again["cost"]["device_hours"] > told["cost"]["device_hours"] and len(money) == 3


def test_a_run_that_goes_on_is_expected_to_cost_more(tmp_path):
    run = MadeRun(tmp_path, "on", MadeValues(ranks=2, layers=1, total=100), sets=("cost.per_device_hour=3600", "cost.currency=CNY"))
    run.start()
    run.rows(1, 50)
    now = overview(run.path, "running", 100)
    cost = now.cost.at(0.01, now.eta_s, 2)
    assert cost.money == pytest.approx(36) and cost.money_at_end == pytest.approx(36 + 2 * now.eta_s) and str(cost) == f"cost 36.00 CNY, {cost.money_at_end:.2f} CNY at the end"
    told = Standing(Run(run.path)).as_dict()["cost"]  # a run of before there was the metric: by the wall clock
    assert told["money"] == pytest.approx(told["device_hours"] * 3600) and told["currency"] == "CNY"


@pytest.mark.parametrize(("bad", "why"), [
    ("per_device_hour=-1", "greater than or equal to 0"), ("per_device_hour=inf", "finite"), ("per_device_hour=cheap", "number"),
    ("currency=dollars", r"\^\[A-Z\]\{3\}"), ("per_gpu_hour=1", "per_device_hour"),
])  # fmt: skip
def test_a_price_that_is_none_is_refused_by_name(bad, why):
    with pytest.raises(ConfigError, match=f"cost.*{why}"):
        load_config("tiny", [f"cost.{bad}"])
