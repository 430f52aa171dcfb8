"""Series as bytes: what was measured, at the steps asked for, with tokens; and what is new, as viewers are told it."""

import asyncio
import json
import shutil

import numpy as np
import pytest
from tests.dashboard.asking import client, courses
from tests.dashboard.made_runs import MadeRun
from tests.dashboard.made_values import Faults, MadeValues

from penstock.dashboard.events import Events
from penstock.dashboard.live import Hub, Position
from penstock.dashboard.live.feed import Feed, Viewer
from penstock.dashboard.live.reader import Reader
from penstock.dashboard.live.ring import MOST_STEPS
from penstock.monitor.series import Bound, Series, read_kinds
from penstock.store import Run

NAMES = ("loss/total", "time/own", "data/sequences")


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    """A run of 3,000 steps of which 2,000 are stored, and one whose loss ends in NaN."""
    folder = tmp_path_factory.mktemp("runs")
    run = MadeRun(folder, "long", MadeValues(ranks=2, layers=1, total=3000))
    run.rows(1, 2000)
    run.keep()
    run.rows(2001, 3000)
    bad = MadeRun(folder, "bad", MadeValues(ranks=2, layers=1, total=40, faults=Faults(non_finite=30)))
    bad.rows(1, 40)
    return folder


@pytest.fixture(scope="module")
def browser(runs_dir):
    with client(runs_dir) as asking:
        yield asking


def series(browser, run, *names, **query):
    answer = browser.get(f"/api/v1/runs/{run}/series", params={"name": names} | query)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/vnd.penstock.series", answer.text
    return courses(answer.content)


def test_series_are_those_of_the_run(browser, runs_dir):
    folder = runs_dir / "long" / "metrics"
    header, found = series(browser, "long", *NAMES, points=4000)
    assert header["through"] == 3000 and header["missing"] == [] and [c["measured"] for c in header["courses"]] == [3000] * 3
    for course in Series(folder, read_kinds(folder)).courses(NAMES):
        columns = found[course.name]
        assert (columns["step"] == course.steps).all() and (columns["time"] == course.times).all()
        assert (columns["tokens"] == course.steps * 64 * 512).all()
        for name in ("value", "low", "high"):
            assert (columns[name] == getattr(course, name).astype(np.float32)).all()
        assert (columns["high_rank"] == course.high_rank).all() and (columns["low_rank"] == course.low_rank).all()


def test_series_are_thinned_and_cut_to_what_is_asked(browser, runs_dir):
    folder = runs_dir / "long" / "metrics"
    header, found = series(browser, "long", "loss/total", "loss/total", points=100, **{"from": 500, "to": 2500})
    [whole] = Series(folder, read_kinds(folder)).courses(["loss/total"], Bound(500), Bound(2500))
    assert header["courses"][0]["rows"] <= 100 and header["courses"][0]["measured"] == 2001 and len(header["courses"]) == 1
    column = found["loss/total"]
    assert (column["step"][0], column["step"][-1]) == (500, 2500) and header["through"] == 3000
    assert column["value"].max() == whole.value.max().astype(np.float32) and column["value"].min() == whole.value.min().astype(np.float32)


def test_what_was_never_measured_is_missing_and_nan_is_kept(browser):
    header, found = series(browser, "bad", "loss/total", "no/such", "<b>")
    assert header["missing"] == ["no/such", "<b>"]
    assert np.isnan(found["loss/total"]["value"][-11:]).all() and np.isfinite(found["loss/total"]["value"][:-11]).all()


def test_tokens_come_from_the_settings_where_none_were_counted(tmp_path):
    run = MadeRun(tmp_path, "uncounted", MadeValues(ranks=1, layers=1, total=4), sets=("batch.global=10", "batch.micro=1"))
    made = run.values.at
    run.values.at = lambda steps: {name: value for name, value in made(steps).items() if name == "loss/total"}
    run.rows(1, 4)
    with client(tmp_path) as browser:
        assert series(browser, "uncounted", "loss/total")[1]["loss/total"]["tokens"].tolist() == [5120.0, 10240.0, 15360.0, 20480.0]


@pytest.mark.parametrize(
    "query", [{}, {"name": ["a"] * 65}, {"name": "a", "points": 4001}, {"name": "a", "points": 0}, {"name": "a", "from": -1}, {"name": "a", "to": "x"}, {"name": "a", "x": "time"}]
)
def test_series_refuse_what_is_too_much_or_no_number(browser, query):
    answer = browser.get("/api/v1/runs/long/series", params=query)
    assert answer.status_code == 422 and answer.json()["error"].startswith("query.")


def test_metrics_are_named_with_what_they_mean(browser):
    found = {metric["name"]: metric for metric in browser.get("/api/v1/runs/long/metrics").json()["metrics"]}
    assert found["loss/total"]["unit"] == "nats" and found["loss/total"]["group"] == "loss" and "cross-entropy" in found["loss/total"]["meaning"]


def test_the_overview_says_how_far_how_fast_and_what_it_cost(browser):
    told = browser.get("/api/v1/runs/long/overview").json()
    assert told["step"] == told["steps"] == 3000 and told["ranks"] == {"0": 3000, "1": 3000} and told["ranks_of"] == 2
    assert told["tokens"] == 3000 * 64 * 512 and told["mfu"] > 0 and told["cost"]["seconds"] > 0 and told["cost"]["device_hours"] > 0
    assert told["metrics"]["loss/total"]["values"] and told["events"] == []
    assert browser.get("/api/v1/runs/bad/overview").json()["metrics"]["loss/total"]["last"] == "nan"


# ---- what is new


def parsed(text):
    """The events of a piece of a stream: kind, position, data."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "event" in fields:
            found.append((fields["event"], Position.parse(fields["id"]), json.loads(fields["data"])))
    return found


class Watching:
    """One feed without its clock, and viewers of it."""

    def __init__(self, run):
        self.feed = Feed(Reader(Run(run.path)))
        self.feed._tell(alerts=True)

    def look(self):
        turn = self.feed.reader.turn()
        self.feed._rows.clear()
        self.feed._overview_at = 0.0
        self.feed._tell(turn.alerts)

    def viewer(self, *names, after=None):
        return Viewer(self.feed, names or ("loss/total",), after)


def news(viewer, *kinds):
    return [event for event in parsed("".join(viewer.news())) if event[0] in kinds]


@pytest.fixture
def run(tmp_path):
    made = MadeRun(tmp_path, "live", MadeValues(ranks=2, layers=1, total=1000))
    made.rows(1, 20)
    return made


def test_viewers_are_told_the_overview_and_then_new_rows_of_their_metrics(run):
    watching = Watching(run)
    one, other = watching.viewer("loss/total", "time/own"), watching.viewer("grad_norm/total", "no/such")
    [(_, _, told)] = news(one, "overview")
    assert told["step"] == 20 and news(one, "rows") == []
    run.rows(21, 23)
    watching.look()
    [(_, position, rows)] = news(one, "rows")
    assert rows["through"] == position.step == 23 and set(rows["courses"]) == {"loss/total", "time/own"}
    own = rows["courses"]["time/own"]
    assert own["step"] == [21, 22, 23] and own["tokens"] == [step * 64 * 512 for step in own["step"]]
    assert all(low <= value <= high for low, value, high in zip(own["low"], own["value"], own["high"])) and set(own["high_rank"]) <= {0, 1}
    assert list(news(other, "rows")[0][2]["courses"]) == ["grad_norm/total"]
    assert news(one, "rows") == []


def test_a_viewer_who_comes_back_goes_on_where_it_was(run):
    watching = Watching(run)
    run.rows(21, 30)
    watching.look()
    for after in (Position(-1, 25), Position(1, 25)):
        [(_, _, rows)] = news(watching.viewer(after=after), "rows")
        assert rows["courses"]["loss/total"]["step"] == [26, 27, 28, 29, 30]


def test_a_run_that_went_back_resets_those_who_saw_more(run):
    watching = Watching(run)
    run.rows(21, 30)
    watching.look()
    ahead, behind = watching.viewer(), watching.viewer(after=Position(1, 22))
    run.begin(25)
    run.rows(26, 27)
    watching.look()
    assert [(kind, told) for kind, _, told in news(ahead, "reset", "rows")] == [("reset", {"through": 25})]
    assert news(behind, "rows")[0][2]["courses"]["loss/total"]["step"] == [23, 24, 25, 26, 27]
    assert news(watching.viewer(after=Position(1, 30)), "reset", "rows")[0][0] == "reset"
    run.rows(28, 28)
    watching.look()
    assert news(ahead, "rows")[0][2]["courses"]["loss/total"]["step"] == [28]


def test_a_generation_that_goes_on_at_the_end_resets_nobody(run):
    watching = Watching(run)
    viewer = watching.viewer()
    run.begin(20, ranks=1)
    run.rows(21, 22)
    watching.look()
    assert [kind for kind, _, _ in news(viewer, "reset", "rows")] == ["rows"]
    assert watching.feed.reader.standing.as_dict()["ranks"] == {0: 22}


def test_a_slow_viewer_is_reset_when_its_rows_are_gone(run):
    watching = Watching(run)
    slow, quick = watching.viewer(), watching.viewer()
    run.rows(21, 21 + MOST_STEPS + 10)
    while watching.feed.reader.turn().steps:
        pass
    watching.look()
    assert [kind for kind, _, _ in news(slow, "reset", "rows")] == ["reset"]
    assert len(watching.feed.reader.ring.steps) == MOST_STEPS
    assert [kind for kind, _, _ in news(quick, "reset", "rows")] == ["reset"] and news(quick, "reset", "rows") == []


def test_alerts_and_events_are_told_when_they_come(run):
    watching = Watching(run)
    viewer = watching.viewer()
    assert news(viewer, "alerts") == []
    run.alert("straggler", 20, rank=1)
    run.event("note", "something", 20)
    watching.look()
    events = parsed("".join(viewer.news()))
    assert [told[0]["kind"] for kind, _, told in events if kind == "alerts"] == ["straggler"]
    [overview] = [told for kind, _, told in events if kind == "overview"]
    assert overview["health"] == "1 open alert" and overview["events"][0]["text"] == "something"


def test_snapshots_that_follow_each_other_are_one_event(run):
    for step in range(21, 25):
        run.event("snapshot", f"saved as {step}", step)
    run.event("change", "optim.lr 1 → 2", 24)
    run.event("snapshot", "saved as 25", 25)
    events = Events(run.path)
    events.refresh()
    texts = [event["text"] for event in events.newest_first]
    assert texts[:3] == ["saved as 25", "optim.lr 1 → 2", "saved as 24, the last of 4"] and "saved as 23" not in "".join(texts)


def test_rows_that_a_monitor_stores_meanwhile_are_told_once(run):
    watching = Watching(run)
    viewer = watching.viewer()
    run.rows(21, 25)
    watching.look()
    run.keep()
    run.rows(26, 27)
    watching.look()
    assert news(viewer, "rows")[0][2]["courses"]["loss/total"]["step"] == [21, 22, 23, 24, 25, 26, 27]


@pytest.mark.parametrize("text", ["", "x", "-1", "1.x", "1e3", "9" * 30, "1.2.3", "١"])
def test_what_is_no_position_is_refused(browser, text):
    assert Position.parse(text) is None
    assert not text or browser.get("/api/v1/runs/long/live", params={"after": text}).status_code == 422


@pytest.mark.slow
def test_a_stream_ends_with_the_folder_of_its_run(run):
    async def watch():
        hub = Hub()
        stream = await hub.stream(Run(run.path), ("loss/total",), None)
        await anext(stream)
        shutil.rmtree(run.path)
        async with asyncio.timeout(30):
            async for _ in stream:
                pass
        assert hub.viewers == 0

    asyncio.run(watch())


def test_a_fault_of_a_reader_ends_the_stream_and_is_told(run, monkeypatch, capsys):
    async def watch():
        hub = Hub()
        stream = await hub.stream(Run(run.path), ("loss/total",), None)
        await anext(stream)
        monkeypatch.setattr(Reader, "turn", lambda self: 1 / 0)
        async with asyncio.timeout(30):
            async for _ in stream:
                pass
        await asyncio.sleep(0)
        assert not hub._feeds

    asyncio.run(watch())
    assert "ZeroDivisionError" in capsys.readouterr().err


async def _until(stream, kind):
    """The step of the next event of a kind."""
    while not (events := parsed(await anext(stream))) or events[0][0] != kind:
        pass
    return events[0][1].step


@pytest.mark.slow
def test_viewers_share_one_reader_and_it_ends_after_the_last(run, monkeypatch):
    monkeypatch.setattr("penstock.dashboard.live.feed.LINGER_S", 0.1)

    async def watch():
        hub = Hub()
        streams = [await hub.stream(Run(run.path), ("loss/total",), None) for _ in range(3)]
        firsts = [[await anext(stream), await anext(stream)] for stream in streams]
        assert all(parsed(first[1])[0][0] == "overview" for first in firsts)
        assert len(hub._feeds) == 1 and hub.viewers == 3
        run.rows(21, 21)
        assert [await _until(stream, "rows") for stream in streams] == [21] * 3
        for stream in streams:
            await stream.aclose()
        assert hub.viewers == 0
        await asyncio.sleep(1.5)
        assert not hub._feeds

    asyncio.run(watch())
