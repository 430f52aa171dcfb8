"""What other people's tools read of a run: consumers written by others open it, and bridges need their packages only when asked."""

import json
import math
import sys
import types
import urllib.error
import urllib.request

import numpy as np
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from metric_runs import KINDS, NAMES, Ranks

from penstock.config import UserError
from penstock.monitor.export import Span, exposition, latest, read_spans, serve
from penstock.monitor.export.bridges import by_step
from penstock.monitor.export.grafana import dashboard
from penstock.monitor.export.openmetrics import family
from penstock.monitor.export.perfetto import trace
from penstock.monitor.export.spans import nested
from penstock.monitor.export.table import csv_lines, json_pieces
from penstock.monitor.export.tensorboard import write_events
from penstock.monitor.series import Kind, RowLog, Series
from penstock.monitor.series.catalogue import CATALOGUE


@pytest.fixture
def series(tmp_path):
    Ranks(tmp_path).steps(range(1, 6))
    return Series(tmp_path, KINDS)


def strange(tmp_path, values):
    log = RowLog(tmp_path / "strange", 0, 1, 1, 0)
    log.names([f"loss/{i}" for i in range(len(values))])
    log.append(1, 2.5, np.array(values))
    return Series(tmp_path / "strange", KINDS)


def samples(families):
    return {(s.name, s.labels["where"]): s.value for f in families for s in f.samples}


def test_prometheus_own_parsers_read_the_newest_values(series):
    openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")
    plain = pytest.importorskip("prometheus_client.parser")
    rows = latest(series)
    read = samples(openmetrics.text_string_to_metric_families(exposition('a "run"\\\n', rows)))
    assert read == samples(plain.text_string_to_metric_families(exposition("x", rows, open_metrics=False)))
    assert read["penstock_loss_nats", "total"] == 9.0
    assert read["penstock_grad_norm", "total"] == pytest.approx(5.0)
    assert (read["penstock_time_seconds", "step"], read["penstock_high_time_seconds", "step"], read["penstock_high_rank_time_seconds", "step"]) == (1.5, 2.0, 1.0)
    (unit,) = [f.unit for f in openmetrics.text_string_to_metric_families(exposition("x", rows)) if f.name == "penstock_time_seconds"]
    assert unit == "seconds"


def test_not_a_number_and_infinities_reach_prometheus(tmp_path):
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    rows = latest(strange(tmp_path, [math.nan, math.inf, -math.inf, 1e-300]))
    read = samples(parser.text_string_to_metric_families(exposition("x", rows)))
    assert math.isnan(read["penstock_loss_nats", "0"])
    assert [read["penstock_loss_nats", str(i)] for i in (1, 2, 3)] == [math.inf, -math.inf, 1e-300]


def test_the_catalogue_has_well_formed_families_each_of_one_type(tmp_path):
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    log = RowLog(tmp_path, 0, 2, 1, 0)
    other = RowLog(tmp_path, 1, 2, 1, 0)
    names = sorted({kind.pattern.replace("*", "x") for kind in CATALOGUE})
    for i, each in enumerate((log, other)):
        each.names(names)
        each.append(1, 1.0, np.full(len(names), float(i)))
    from penstock.monitor.series import Kinds

    text = exposition("x", latest(Series(tmp_path, Kinds(CATALOGUE))))
    assert len(samples(parser.text_string_to_metric_families(text))) == 5 * len(names)


def test_the_endpoint_serves_on_the_loopback_and_survives_a_scrape_that_fails(series):
    calls = []

    def scrape(open_metrics):
        calls.append(open_metrics)
        if len(calls) == 2:
            raise RuntimeError("moved")
        return exposition("x", latest(series), open_metrics)

    server = serve(0, scrape)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert "penstock_loss_nats" in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{url}/metrics", timeout=60)
        asked = urllib.request.Request(f"{url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert answer.read().endswith(b"# EOF\n")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/etc/passwd", timeout=60)
        with pytest.raises(UserError, match="choose another port"):
            serve(server.server_address[1], scrape)
    finally:
        server.shutdown()
        server.server_close()
    assert server.server_address[0] == "127.0.0.1"


def write_spans(folder, rank, spans):
    (folder / f"rank-{rank:05d}").mkdir(parents=True, exist_ok=True)
    (folder / f"rank-{rank:05d}" / "spans.json").write_text(json.dumps({"rank": rank, "spans": spans}))


SPANS = [["step", 1000.0, 2.0], ["forward", 1000.0, 0.5], ["wait/data.grad", 1000.5, 3.0], ["mark", 1003.0, 0.0]]


def test_spans_nest_and_one_that_outlasts_its_parent_ends_with_it():
    spans = [Span(0, name, round(start * 1e9), round((start + length) * 1e9)) for name, start, length in SPANS]
    told = [(time / 1e9, span.name, begins) for time, span, begins in nested(spans)]
    assert told == [
        (1000.0, "step", True), (1000.0, "forward", True), (1000.5, "forward", False), (1000.5, "wait/data.grad", True),
        (1002.0, "wait/data.grad", False), (1002.0, "step", False), (1003.0, "mark", True), (1003.0, "mark", False),
    ]  # fmt: skip


def test_perfettos_own_schema_reads_the_trace(tmp_path):
    schema = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    for rank in (0, 3):
        write_spans(tmp_path, rank, SPANS)
    spans, damage = read_spans(tmp_path)
    read = schema.Trace()
    read.ParseFromString(b"".join(trace("mine", spans)))
    assert damage == []
    tracks = {p.track_descriptor.uuid: p.track_descriptor.process.process_name for p in read.packet if p.HasField("track_descriptor")}
    events = [p for p in read.packet if p.HasField("track_event")]
    assert sorted(tracks.values()) == ["mine rank 0", "mine rank 3"]
    assert {e.track_event.track_uuid for e in events} == set(tracks)
    begins = [e for e in events if e.track_event.type == schema.TrackEvent.TYPE_SLICE_BEGIN]
    assert [e.track_event.name for e in begins[:4]] == ["step", "forward", "wait/data.grad", "mark"]
    assert (begins[0].timestamp, len(events), len(begins)) == (1_000_000_000_000, 16, 8)
    parts = [part for p in read.packet for part in (p, p.track_event, p.track_descriptor, p.track_descriptor.process)]
    assert all(len(UnknownFieldSet(part)) == 0 for part in parts)


def test_damaged_spans_are_named_and_none_at_all_is_said(tmp_path):
    write_spans(tmp_path, 0, SPANS)
    write_spans(tmp_path, 1, SPANS)
    (tmp_path / "rank-00001" / "spans.json").write_text('{"spans": [["a", 1')
    spans, damage = read_spans(tmp_path)
    assert {span.rank for span in spans} == {0}
    assert "rank-00001" in damage[0]
    with pytest.raises(UserError, match="holds no spans"):
        read_spans(tmp_path / "nowhere")


def test_tensorboards_own_reader_reads_the_events(series, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert write_events(tmp_path / "events", series.courses(NAMES)) == 5
    read = EventAccumulator(str(tmp_path / "events")).Reload()
    assert set(read.Tags()["scalars"]) == {*NAMES, "time/step.low", "time/step.high"}
    assert [(event.step, event.wall_time) for event in read.Scalars("loss/total")] == [(step, 1000.125 + step) for step in range(1, 6)]


def test_the_dashboard_asks_for_what_the_endpoint_gives():
    made = dashboard([*CATALOGUE, Kind("*", "1", "sum", "else", "")])
    json.dumps(made, allow_nan=False)
    expressions = {panel["targets"][0]["expr"].partition("{")[0] for panel in made["panels"]}
    assert expressions == {family(kind.pattern.partition("/")[0], kind.unit)[0] for kind in CATALOGUE}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in made["panels"]]
    assert len(set(places)) == len(places) > 15


def test_csv_and_json_come_back_as_the_same_numbers(tmp_path):
    values = [math.nan, math.inf, -math.inf, 1 / 3, 5e-324]
    series = strange(tmp_path, values)
    heading, *lines = csv_lines(series.courses(series.names()))
    assert heading == "name,step,time,value,low,high,low_rank,high_rank"
    read = [float(line.split(",")[3]) for line in lines]
    assert np.array_equal(read, values, equal_nan=True)
    told = json.loads("".join(json_pieces("x", series.courses(series.names()), series)))
    assert np.array_equal([float(metric["value"][0]) for metric in told["metrics"]], values, equal_nan=True)
    assert told["metrics"][0]["value"] == ["nan"]
    assert (told["damage"], told["lost"]) == ([], 0)


def test_steps_of_courses_have_what_was_measured_and_how_ranks_differ(series):
    (step, time, values), *_ = by_step(series.courses(["time/step", "optim/lr"]))
    assert (step, time, values) == (1, 1001.125, {"time/step": 1.5, "time/step.low": 1.0, "time/step.high": 2.0, "optim/lr": 1e-3})


class Told:
    """Stands in for a tracker: remembers what it was told."""

    def __init__(self):
        self.config, self.steps, self.finished = None, {}, False
        self.info = types.SimpleNamespace(run_id="1")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.finished = True

    def log(self, values, step):
        self.steps[step] = values

    def log_batch(self, run_id, metrics):
        for metric in metrics:
            self.steps.setdefault(metric.step, {})[metric.key] = metric.value


def module(monkeypatch, name, **members):
    made = types.ModuleType(name)
    for member, value in members.items():
        setattr(made, member, value)
    monkeypatch.setitem(sys.modules, name, made)


def test_weights_and_biases_gets_every_step(series, monkeypatch):
    from penstock.monitor.export.wandb import send

    told = Told()
    module(monkeypatch, "wandb", init=lambda project, name, config: setattr(told, "config", (project, name, config)) or told)
    assert send("mine", {"optim.lr": 1}, series.courses(["loss/total"])) == 5
    assert told.config == ("penstock", "mine", {"optim.lr": 1})
    assert told.steps[3] == {"loss/total": 9.0, "_timestamp": 1003.125}
    assert told.finished


def test_trackio_gets_every_step_and_is_finished(series, monkeypatch):
    from penstock.monitor.export.trackio import send

    told = Told()
    finish = lambda: setattr(told, "finished", True)  # noqa: E731
    module(monkeypatch, "trackio", init=lambda project, name, config: None, log=told.log, finish=finish)
    assert send("mine", {}, series.courses(["loss/total"])) == 5
    assert (told.steps[5], told.finished) == ({"loss/total": 9.0}, True)


def test_mlflow_gets_every_value_in_batches_it_allows(series, monkeypatch):
    from penstock.monitor.export import mlflow

    told, batches, parameters = Told(), [], {}
    monkeypatch.setattr(mlflow, "BATCH", 4)
    metric = lambda key, value, at, step: types.SimpleNamespace(key=key, value=value, at=at, step=step)  # noqa: E731
    log = types.SimpleNamespace(log_batch=lambda run_id, metrics: (batches.append(len(metrics)), told.log_batch(run_id, metrics)))
    entities = types.SimpleNamespace(Metric=metric)
    module(monkeypatch, "mlflow", set_experiment=lambda name: None, MlflowClient=lambda: log, start_run=lambda run_name: told,
           log_params=lambda given: parameters.update(given), entities=entities)  # fmt: skip
    config = {f"s.{i}": i for i in range(250)}
    assert mlflow.send("mine", config, series.courses(["loss/total", "optim/lr"])) == 5
    assert batches == [4, 4, 2]
    assert told.steps[2] == {"loss/total": 9.0, "optim/lr": 2e-3}
    assert len(parameters) == 250


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_said_with_how_to_install_it(series, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    bridge = __import__(f"penstock.monitor.export.{name}", fromlist=["send"])
    with pytest.raises(UserError, match=rf"pip install 'penstock\[{name}\]'"):
        bridge.send("x", {}, series.courses(["loss/total"]))


def test_opentelemetry_gets_spans_within_spans(monkeypatch):
    pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from penstock.monitor.export.otel import send_spans

    exporter = InMemorySpanExporter()
    spans = [Span(rank, name, round(start * 1e9), round((start + length) * 1e9)) for rank in (0, 1) for name, start, length in SPANS]
    assert send_spans("mine", spans, exporter) == 8
    read = {(span.resource.attributes["penstock.rank"], span.name): span for span in exporter.get_finished_spans()}
    assert len(read) == 8
    assert read[1, "forward"].parent.span_id == read[1, "step"].context.span_id
    assert (read[0, "step"].start_time, read[0, "step"].end_time) == (1_000_000_000_000, 1_002_000_000_000)
