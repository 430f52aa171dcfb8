"""A timeline tells its costs, goes through a trace file unchanged, and draws every action where and when it was."""

import itertools
import json
import random
import re
import xml.etree.ElementTree as xml

import pytest

from penstock.config import UserError
from penstock.parallel.pipeline.draw import schedule_svg, timeline_svg
from penstock.parallel.pipeline.kinds import KINDS, named_schedule
from penstock.parallel.pipeline.schedule import Action, Costs
from penstock.parallel.pipeline.simulate import simulate
from penstock.parallel.pipeline.timeline import Timeline, measured_costs, timeline_of
from penstock.parallel.pipeline.trace import read_trace, trace_of, write_trace

SVG = "{http://www.w3.org/2000/svg}"


def uneven(schedule, seed=0, transfer=0.05):
    """Random costs of every stage, and one transfer."""
    draw = random.Random(seed).uniform
    n = schedule.stages
    f, i, w = ([draw(0.5, 1.5) for _ in range(n)] for _ in range(3))
    return Costs(tuple(f), tuple(i), tuple(w), (transfer,) * (n - 1), (1 / schedule.chunks,) * n)


def simulated(kind, ranks=4, micro_batches=8, steps=1, **options):
    schedule = named_schedule(kind, ranks, micro_batches)
    costs = uneven(schedule, **options)
    return schedule, costs, timeline_of(schedule, simulate(schedule, costs, steps))


@pytest.mark.parametrize("kind", KINDS)
def test_costs_read_off_a_timeline_time_it_again(kind):
    schedule, costs, timeline = simulated(kind)
    found = measured_costs(timeline)
    assert found.forward == pytest.approx(costs.forward)
    assert [i + w for i, w in zip(found.input_grad, found.weight_grad)] == pytest.approx([i + w for i, w in zip(costs.input_grad, costs.weight_grad)])
    if kind in ("zb-h1", "zb-v"):
        assert (found.input_grad, found.weight_grad) == (pytest.approx(costs.input_grad), pytest.approx(costs.weight_grad))
    assert found.transfer == pytest.approx([0.0 if a == b else 0.05 for a, b in itertools.pairwise(schedule.rank_of)])
    assert simulate(schedule, found).makespan == pytest.approx(timeline.makespan_s)


def test_further_steps_and_one_slow_action_do_not_change_the_costs():
    schedule, costs, timeline = simulated("zb-v", steps=2)
    slow = (*timeline.spans[3][:-1], timeline.spans[3][-1]._replace(end_s=timeline.spans[3][-1].end_s + 50))
    found = measured_costs(Timeline("zb-v", schedule.rank_of, 8, (*timeline.spans[:3], slow), steps=2))
    assert found.forward == pytest.approx(costs.forward) and found.weight_grad == pytest.approx(costs.weight_grad)
    assert found.transfer == pytest.approx([0.0 if a == b else 0.05 for a, b in itertools.pairwise(schedule.rank_of)])


def test_the_bubble_of_a_timeline_is_the_simulators():
    schedule = named_schedule("zb-h1", 4, 8)
    timing = simulate(schedule, uneven(schedule))
    timeline = timeline_of(schedule, timing)
    assert (timeline.bubble, timeline.makespan_s) == (pytest.approx(timing.bubble), pytest.approx(timing.makespan))
    assert timeline.schedule == schedule


@pytest.mark.parametrize("steps", [1, 3])
def test_a_trace_reads_back_the_same(tmp_path, steps):
    _, _, timeline = simulated("dualpipe-v", steps=steps)
    numbered = Timeline(timeline.kind, timeline.rank_of, timeline.micro_batches, timeline.spans, steps, first_step=40)
    write_trace(numbered, tmp_path / "t.json")
    back = read_trace(tmp_path / "t.json")
    assert (back.kind, back.rank_of, back.micro_batches, back.steps, back.first_step) == ("dualpipe-v", timeline.rank_of, 8, steps, 40)
    for row, wanted in zip(back.spans, timeline.spans):
        assert [span.action for span in row] == [span.action for span in wanted]
        assert [time for span in row for time in span[1:]] == pytest.approx([time for span in wanted for time in span[1:]], abs=1e-9)


def test_a_trace_shows_one_thread_a_rank_and_names_actions():
    _, _, timeline = simulated("1f1b", ranks=2, micro_batches=3)
    events = trace_of(timeline)["traceEvents"]
    threads = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert threads == {0: "rank 0", 1: "rank 1"}
    first = next(event for event in events if event["ph"] == "X")
    assert (first["name"], first["args"], first["ts"]) == ("F 0.0", {"work": "F", "stage": 0, "micro": 0}, 0.0)
    assert first["dur"] == pytest.approx(1e6 * (timeline.spans[0][0].end_s - timeline.spans[0][0].start_s))


def broken(change):
    trace = trace_of(simulated("1f1b", ranks=2, micro_batches=3)[2])
    change(trace)
    return json.dumps(trace)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "it is not JSON"),
        ("[1, 2]", "no trace of a pipeline"),
        ('{"traceEvents": []}', "'otherData' is missing or odd"),
        (broken(lambda t: t["otherData"].clear()), "'pipeline' is missing or odd"),
        (broken(lambda t: t["otherData"]["pipeline"].update(micro_batches=0)), "0 micro-batches"),
        (broken(lambda t: t["otherData"]["pipeline"].update(steps=5)), "do not divide into 5 steps"),
        (broken(lambda t: t["traceEvents"].pop()), "rank 1: 1B2 .*is missing"),
        (broken(lambda t: t["traceEvents"][-1].update(tid=5)), "is of rank 5"),
        (broken(lambda t: t["traceEvents"][-1].update(dur=-1)), "has no time"),
        (broken(lambda t: t["traceEvents"][-1]["args"].pop("stage")), "'stage' is missing or odd"),
    ],
)
def test_a_trace_that_tells_no_pipeline_is_refused_in_a_sentence(tmp_path, text, told):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UserError, match=rf"odd\.json.*{told}"):
        read_trace(tmp_path / "odd.json")


def test_a_trace_that_is_not_there_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the trace .*gone\.json"):
        read_trace(tmp_path / "gone.json")


def test_the_picture_has_a_block_for_every_action_at_its_time():
    schedule, _, timeline = simulated("zb-v", ranks=3, micro_batches=6)
    root = xml.fromstring(timeline_svg(timeline))
    blocks = [(rect, rect.find(f"{SVG}title")) for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    assert len(blocks) == sum(map(len, schedule.actions))
    told = {re.match(r"(\w)[a-z ]*, stage (\d+), micro-batch (\d+)", title.text).groups(): rect for rect, title in blocks}
    ends = [float(rect.get("x")) + float(rect.get("width")) for rect, _ in blocks]
    scale = (max(ends) - min(float(rect.get("x")) for rect, _ in blocks)) / timeline.makespan_s
    begins = {span.action: span.start_s for row in timeline.spans for span in row}
    left = float(told["f", "0", "0"].get("x"))
    for (work, stage, micro), rect in told.items():
        start = begins[Action(work.upper(), int(stage), int(micro))]
        assert float(rect.get("x")) - left == pytest.approx(start * scale, rel=0.01, abs=1)
    assert len({rect.get("y") for rect, _ in blocks}) == 3
    text = " ".join(root.itertext())
    assert "zb-v: 3 ranks, 6 micro-batches, bubble" in text and "input gradient" in text and "idle" in text


def test_a_title_is_escaped_and_a_large_picture_leaves_tooltips_out():
    schedule = named_schedule("1f1b", 16, 256)
    picture = schedule_svg(simulate(schedule, uneven(schedule)), schedule, title="a < b & c")
    assert "a &lt; b &amp; c" in picture and "<title>" not in picture and len(picture) < 2_000_000
    xml.fromstring(picture)
